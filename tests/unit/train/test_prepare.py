"""The reasons for which a training run is refused before Ray starts."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN

from histill.artifacts.model_folder import ModelCard, build, read_card, save
from histill.config.common import Storage
from histill.config.load import set_value, validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.runs import Network, RunConfig, SupervisedLoss
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.models.projection import ProjectedStudent
from histill.models.transfer import find_encoder
from histill.stream.views import Views
from histill.tasks.training_task import TrainingTask
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import write_manifest
from histill.tiles.whole_table import read_table
from histill.train.prepare import prepare_run
from histill.train.run_folder import open_record, save_record
from histill.train.spec import RunSpec
from histill.train.validate import size_of

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=24, tile_px=128)  # at 0.5 um/px


def configured(kind: type[RunConfig], manifest: Manifest, runs: Path, **changes: Any) -> Any:
    data: dict[str, Any] = {"name": "run", "runs": str(runs), "data": {"tiles": manifest.uri, "batch_size": 4}}
    if kind is PretrainConfig:
        data |= {"teacher": {"classical": True}, "student": {"encoder": "csat_tiny"}}
    for key, value in changes.items():
        data = set_value(data, key.replace("__", "."), value)
    return validate(kind, data, "the test")


def refused(manifest: Manifest, runs: Path, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepare_run(configured(PretrainConfig, manifest, runs, **changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("network", "size"),
    [
        ({}, 128),
        ({"size_px": 64}, 64),
        ({"mpp": 0.5}, 128),
        ({"mpp": 1.0}, 64),
        ({"mpp": 2.0}, 32),
        ({"mpp": 0.6666}, 96),  # three quarters of the tile's resolution, rounded
    ],
)
def test_the_side_that_a_network_sees(manifest: Manifest, network: dict[str, Any], size: int) -> None:
    assert size_of(Network(**network), manifest, dense=True) == size


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"size_px": 160}, ["160 px", "128 px at 0.5 um/px", "choose at most 128 px, or an mpp of at least 0.5"]),
        ({"mpp": 0.25}, ["256 px", "128 px at 0.5 um/px", "an mpp of at least 0.5"]),
        ({"mpp": 1.2}, ["53 px", "set size_px to a multiple of 32"]),
        ({"mpp": 0.8}, ["80 px", "multiple of 32"]),
        ({"mpp": 7.9}, ["at mpp 7.9", "128 px at 0.5 um/px", "8.10 px, no whole number", "set size_px"]),
    ],
)
def test_sides_that_are_refused(manifest: Manifest, network: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        size_of(Network(**network), manifest, dense=True)
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "views"),
    [({}, Views(128, 128)), ({"student__size_px": 64}, Views(64, 128)), ({"student__mpp": 2.0}, Views(32, 128))],
)
def test_a_live_teacher_has_a_view_of_its_own(
    manifest: Manifest, tmp_path: Path, changes: dict[str, Any], views: Views
) -> None:
    prepared = prepare_run(configured(PretrainConfig, manifest, tmp_path, **changes))
    assert prepared.views == views
    assert prepared.card.size_px == views.student_px
    assert prepared.source.responses is None
    assert (prepared.source.tiles, prepared.source.digest) == (manifest.uri, manifest.header.digest)
    assert not prepared.source.masks


def test_a_supervised_run_needs_one_view_and_masks(manifest: Manifest, tmp_path: Path) -> None:
    config = configured(TeacherConfig, manifest, tmp_path, network__size_px=64, network__encoder="csat_tiny")
    prepared = prepare_run(config)
    assert prepared.views == Views(64)
    assert prepared.source.masks


def test_a_classifying_teacher_needs_labels_and_sees_any_size(
    manifest: Manifest, tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    labeled = tile_set(tmp_path / "labeled", tiles=24, tile_px=64, labels=True)
    changes: dict[str, Any] = {"target": "classification", "network__encoder": "resnet_gn", "network__size_px": 28}
    changes |= {"loss": {"cross_entropy": {"class_weights": True, "smoothing": 0.1}}, "fraction": 0.5}
    prepared = prepare_run(configured(TeacherConfig, labeled, tmp_path, **changes))
    assert (prepared.card.kind, prepared.card.classes) == ("classification", ("stroma", "tumour"))
    assert (prepared.views, prepared.source.masks) == (Views(28), False)
    assert prepared.cases is not None
    assert len(prepared.cases) == 2
    assert isinstance(prepared.config, TeacherConfig)
    assert prepared.class_weights is not None
    assert prepared.build_task() == TrainingTask(
        prepared.card.outputs, prepared.config.loss, class_weights=prepared.class_weights
    )
    assert prepared.config.loss.terms.keys() == {"cross_entropy"}
    with pytest.raises(InputError, match=r"0 labels .* classifier needs two"):
        prepare_run(configured(TeacherConfig, manifest, tmp_path, target="classification"))


def test_a_classifier_is_no_teacher_of_pixels(manifest: Manifest, tmp_path: Path) -> None:
    card = ModelCard(
        kind="classification", encoder="csat_tiny", decoder_channels=(), classes=("a", "b"), mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2), tile_px=128, tile_mpp=0.5, size_px=64, tiles_digest="", train_cases=(), histill="0",
    )  # fmt: skip
    save(str(tmp_path), build(card), card)
    assert "answers for whole tiles" in refused(manifest, tmp_path / "runs", teacher={"model": str(tmp_path)})


def test_a_boundary_is_a_further_class_of_the_card(manifest: Manifest, tmp_path: Path) -> None:
    config = configured(TeacherConfig, manifest, tmp_path, boundary_px=2, network__encoder="csat_tiny")
    prepared = prepare_run(config)
    assert prepared.card.classes == ("background", "nucleus", "boundary")
    assert prepared.build_task() == TrainingTask(prepared.card.outputs, SupervisedLoss(), boundary_px=2)
    without = prepare_run(config.model_copy(update={"boundary_px": 0}))
    assert without.card.classes == ("background", "nucleus")


def test_a_task_names_a_tile_as_it_is_stored(manifest: Manifest, tmp_path: Path) -> None:
    task = prepare_run(configured(TeacherConfig, manifest, tmp_path, network__encoder="csat_tiny")).build_task()
    assert task.name_of(17) == f"tile case-4/17 in shard {manifest.uri}/shards/0002.parquet"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"boundary_px": -1}, "'boundary_px' is -1"),
        ({"classes": ("background", "nucleus", "boundary")}, "'boundary', which is what boundary_px adds"),
        ({"classes": ("background", "gland", "gland")}, "names one of them twice"),
        ({"target": "classification", "boundary_px": 2}, "boundary_px and loss.deep are for segmentation"),
        ({"multi_label": True}, "multi_label is for classification"),
    ],
)
def test_classes_of_a_teacher_that_are_refused(
    manifest: Manifest, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        configured(TeacherConfig, manifest, tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_tiles_without_masks_are_refused_for_a_supervised_run(
    tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    unmasked = tile_set(tmp_path / "tiles", tiles=12, tile_px=32, masks=False)
    with pytest.raises(InputError, match=r"8 tiles of split 'train' .* have no mask \(first: case-0/0\)"):
        prepare_run(configured(TeacherConfig, unmasked, tmp_path / "runs", network__encoder="csat_tiny"))


@pytest.mark.parametrize(
    ("crop_px", "changes", "fitting"),
    [
        (160, {}, "32, 64, 96, 128"),
        (48, {}, "32, 64, 96, 128"),
        (32, {"student__size_px": 64}, "64, 128"),
        (64, {"student__mpp": 2.0}, "128"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    manifest: Manifest, tmp_path: Path, crop_px: int, changes: dict[str, Any], fitting: str
) -> None:
    message = refused(manifest, tmp_path, data__augment__crop_px=crop_px, **changes)
    assert message.startswith(f"augment.crop_px is {crop_px}, ")
    assert f"only windows of {fitting} px" in message


def test_windows_that_fit_pass(manifest: Manifest, tmp_path: Path) -> None:
    changes = {"data__augment__crop_px": 64, "student__size_px": 64}
    assert prepare_run(configured(PretrainConfig, manifest, tmp_path, **changes)).views == Views(64, 128)


def test_a_balance_by_what_tiles_do_not_have_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    message = refused(manifest, tmp_path, data__balance="label")
    assert message.startswith("16 of 16 tiles of ")
    assert "have no label; balance by another column" in message
    prepare_run(configured(PretrainConfig, manifest, tmp_path, data__balance="case"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_refused(manifest: Manifest, tmp_path: Path, split: str) -> None:
    rows = read_table(manifest).filter(pa.array([name != split for name in read_table(manifest)["split"].to_pylist()]))
    header = manifest.header
    changed = write_manifest(
        str(tmp_path / "tiles"), rows, tile_px=header.tile_px, mpp=header.mpp, ingest="", storage=Storage()
    )
    assert f"split '{split}' of" in refused(changed, tmp_path / "runs")


def test_an_unknown_encoder_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    assert "resnet81" in refused(manifest, tmp_path, student__encoder="resnet81")


def test_a_teacher_of_another_resolution_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    card = ModelCard(
        encoder="csat_tiny",
        decoder_channels=(16, 16, 8, 8, 8),
        classes=("background", "nucleus"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        tile_px=128,
        tile_mpp=0.25,
        size_px=128,
        tiles_digest="tiles",
        train_cases=(),
        histill="0",
    )
    folder = tmp_path / "model"
    folder.mkdir()
    save(str(folder), build(card), card)
    message = refused(manifest, tmp_path / "runs", teacher__classical=False, teacher__model=str(folder))
    assert message.startswith(f"teacher {folder} was trained on tiles of 0.25 um/px and the tile set has 0.5; ")


def published(path: Path, encoder: str = "resnet18", **changes: torch.Tensor) -> Path:
    """Weights as timm publishes them: for the whole classifier."""
    torch.manual_seed(7)
    weights = {name: tensor.contiguous() for name, tensor in timm.create_model(encoder).state_dict().items()}
    save_file(weights | changes, path)
    return path


def test_a_network_starts_from_published_weights(manifest: Manifest, tmp_path: Path) -> None:
    path = published(tmp_path / "resnet18.safetensors")
    prepared = prepare_run(configured(TeacherConfig, manifest, tmp_path, network__weights=str(path)))
    encoder, given = find_encoder(prepared.build_model()), load_file(path)
    carried = [name for name, tensor in encoder.state_dict().items() if torch.equal(tensor, given[name])]
    assert len(carried) == len(encoder.state_dict())


def test_pretrained_weights_bring_their_normalization(manifest: Manifest, tmp_path: Path) -> None:
    encoder = "tf_efficientnet_lite0"
    path = published(tmp_path / "weights.safetensors", encoder)
    network = {"network__encoder": encoder, "network__weights": str(path)}
    assert prepare_run(configured(TeacherConfig, manifest, tmp_path, **network)).card.mean == (0.5, 0.5, 0.5)
    fresh = prepare_run(configured(TeacherConfig, manifest, tmp_path, network__encoder=encoder))
    assert fresh.card.mean == IMAGENET_DEFAULT_MEAN


def test_weights_that_do_not_fit_are_refused_by_name(manifest: Manifest, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            prepare_run(configured(TeacherConfig, manifest, tmp_path, network__weights=str(path)))
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "are missing" in refused(tmp_path / "nowhere.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02pickled")
    assert "not a safetensors file" in refused(tmp_path / "weights.pth")
    assert "was expected" in refused(published(tmp_path / "other.safetensors", "resnet10t"))
    wide = published(tmp_path / "wide.safetensors", **{"conv1.weight": torch.zeros(64, 3, 5, 5)})
    assert "conv1_weight is of shape (64, 3, 5, 5) and (64, 3, 7, 7) was expected" in refused(wide)


@pytest.mark.parametrize(("weight", "answers"), [(1.0, True), (0.0, False)])
def test_deep_stages_answer_if_their_loss_has_a_weight(
    manifest: Manifest, tmp_path: Path, weight: float, answers: bool
) -> None:
    pretraining = prepare_run(configured(PretrainConfig, manifest, tmp_path, loss__deep__weight=weight))
    teaching = prepare_run(configured(TeacherConfig, manifest, tmp_path, loss__deep__weight=weight))
    for prepared in (pretraining, teaching):
        assert isinstance(prepared.build_model(), ProjectedStudent) == answers
    task = teaching.build_task()
    assert task.objective.deep_weight == weight


def retrained(folder: Path, seed: int, manifest: Manifest) -> Path:
    """A network teacher in the model folder `folder`, its weights drawn by `seed`."""
    folder.mkdir(exist_ok=True)
    header = manifest.header
    card = ModelCard(
        encoder="csat_tiny",
        decoder_channels=(16, 16, 8, 8, 8),
        classes=("background", "nucleus"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        tile_px=header.tile_px,
        tile_mpp=header.mpp,
        size_px=header.tile_px,
        tiles_digest="tiles",
        train_cases=(),
        histill="0",
    )
    torch.manual_seed(seed)
    save(str(folder), build(card), card)
    return folder


def begun(prepared: RunSpec) -> None:
    """Write what a first start leaves in the run folder."""
    record = open_record(prepared.config)
    save_record(prepared.config, record.model_copy(update={"inputs": prepared.inputs}))


def test_a_run_goes_on_from_the_inputs_it_was_begun_with_alone(manifest: Manifest, tmp_path: Path) -> None:
    folder = retrained(tmp_path / "teacher", 1, manifest)
    changes = {"teacher__classical": False, "teacher__model": str(folder)}
    config = configured(PretrainConfig, manifest, tmp_path / "runs", **changes)
    prepared = prepare_run(config)
    weights = (folder / "model.safetensors").read_bytes()
    later = {"val_cases", "taught_on", "unknown_teachers", "width", "teacher", "taught_by", "prefixes", "shapes", "icc"}
    later |= {"weights_sha256"}
    card = read_card(str(folder), Storage()).model_dump_json(exclude=later)
    expected = sha256(card.encode() + weights).hexdigest()
    assert prepared.inputs == {"data.tiles": manifest.header.digest, "teacher.model": expected}
    begun(prepared)
    assert prepare_run(config).inputs == prepared.inputs
    prepared.build_task()

    written = (folder / "model.json").read_bytes()
    retrained(folder, 2, manifest)
    with pytest.raises(InputError) as caught:
        prepare_run(config)
    assert f"was started when teacher.model held {expected[:12]}" in str(caught.value)
    assert "restore the original, or choose another name" in str(caught.value)
    with pytest.raises(InputError, match=f"teacher.model held {expected[:12]} when the run was started"):
        prepared.build_task()  # as a worker that replaces a lost one
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "model.json").write_bytes(written)
    prepare_run(config)


def test_tiles_and_encoder_weights_are_inputs_as_well(tmp_path: Path, tile_set: Callable[..., Manifest]) -> None:
    (tmp_path / "tiles").mkdir()
    first = tile_set(tmp_path / "tiles", tiles=24, tile_px=64)
    path = published(tmp_path / "weights.safetensors")
    keys = {"network__encoder": "resnet18", "network__weights": str(path)}
    config = configured(TeacherConfig, first, tmp_path / "runs", **keys)
    begun(prepare_run(config))
    content = path.read_bytes()
    published(path, **{"fc.bias": torch.ones(1000)})
    with pytest.raises(InputError, match=r"network\.weights held"):
        prepare_run(config)
    path.write_bytes(content)
    table = read_table(first).set_column(
        read_table(first).schema.get_field_index("case"),
        "case",
        pa.array([f"{case}-b" for case in read_table(first)["case"].to_pylist()]),
    )
    header = first.header
    write_manifest(first.uri, table, tile_px=header.tile_px, mpp=header.mpp, ingest="made", storage=Storage())
    with pytest.raises(InputError, match=r"data\.tiles held"):
        prepare_run(config)


def test_a_run_of_a_version_that_noted_no_inputs_goes_on(manifest: Manifest, tmp_path: Path) -> None:
    config = configured(TeacherConfig, manifest, tmp_path / "runs")
    save_record(config, open_record(config))
    assert prepare_run(config).inputs
