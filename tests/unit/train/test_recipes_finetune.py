"""Fine-tuning: its refusals before Ray starts, and its checked run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import timm
import torch
from safetensors.torch import save_file

from histill.artifacts.model_folder import ModelCard, build, load, save
from histill.config.common import Storage
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import set_value, validate
from histill.config.runs import RunConfig, SupervisedLoss
from histill.errors import InputError
from histill.models.classifiers import Classifier
from histill.models.segmenter import Segmenter
from histill.models.transfer import find_encoder
from histill.stream.views import Views
from histill.tasks.training_task import TrainingTask
from histill.tiles.manifest import Manifest, case_digests
from histill.tiles.manifest_file import write_manifest
from histill.tiles.whole_table import read_table
from histill.train.build import build_learner, build_streams
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run
from histill.train.statistics import freeze_modules

pytestmark = pytest.mark.unit
WEIGHTED = {"cross_entropy": {"class_weights": True}}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """Tiles with masks, labeled "stroma" and "tumour" alternately; four training cases of four tiles."""
    return tile_set(tmp_path_factory.mktemp("labeled"), tiles=24, tile_px=64, labels=True)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, labeled: Manifest) -> str:
    """The folder of a csat_tiny segmenter."""
    folder = tmp_path_factory.mktemp("pretrained")
    card = ModelCard(
        encoder="csat_tiny",
        decoder_channels=(16, 16, 8, 8, 8),
        classes=("background", "nucleus"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        tile_px=64,
        tile_mpp=0.5,
        size_px=64,
        tiles_digest="tiles",
        train_cases=(),
        histill="0",
    )
    torch.manual_seed(1)
    save(str(folder), build(card), card)
    return str(folder)


def relabeled(manifest: Manifest, uri: Path, labels: list[str | None]) -> Manifest:
    """`manifest` with other labels, without shards."""
    column = read_table(manifest).schema.get_field_index("label")
    table = read_table(manifest).set_column(column, "label", pa.array(labels, pa.string()))
    header = manifest.header
    return write_manifest(str(uri), table, tile_px=header.tile_px, mpp=header.mpp, ingest="", storage=Storage())


def configured(manifest: Manifest, runs: Path, target: str = "classification", **changes: Any) -> FinetuneConfig:
    data: dict[str, Any] = {
        "name": "run",
        "runs": str(runs),
        "target": target,
        "data": {"tiles": manifest.uri, "batch_size": 4},
        "student": {"encoder": "csat_tiny"},
    }
    for key, value in changes.items():
        data = set_value(data, key.replace("__", "."), value)
    return validate(FinetuneConfig, data, "the test")


def one_sentence(refuse: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        refuse()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert ". " not in message
    return message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frozen": True}, "frozen=true needs a pretrained encoder or student.weights; name one, or set frozen=false"),
        ({"target": "segmentation", "multi_label": True}, "multi_label is for classification"),
        ({"target": "segmentation", "loss": {"deep": {}}}, "loss.deep is for networks that are pretrained"),
        ({"target": "detection"}, "target"),
        ({"target": "segmentation", "head": "probe"}, "head=probe is for classification"),
        ({"head": "probe", "validation": {"keep": "last"}}, "set validation.keep=best"),
        ({"batch_norm": "frozen"}, "batch_norm=frozen keeps what was pretrained; name an encoder"),
        ({"validation": {"keep": "last", "patience": 3}}, "patience waits for a better model"),
        ({"classes": ("tissue",)}, "classes"),
        ({"classes": ("gland", "gland")}, "names one of them twice"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 1.5}, "fraction"),
        ({"encoder": "runs/first", "student__weights": "w.safetensors"}, "both bring pretrained weights"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.1}, "layer_decay"),
        ({"optimizer__ema": 1.0}, "optimizer.ema"),
        ({"precision": "float16"}, "precision"),
        ({"fractions": 0.5}, "did you mean 'fraction'?"),
    ],
)
def test_what_makes_no_sense_is_refused(labeled: Manifest, changes: dict[str, Any], said: str) -> None:
    message = one_sentence(lambda: configured(labeled, Path("runs"), **changes))
    assert message.startswith("the test: ")
    assert said in message


def shared_out(batch_size: int, workers: int, accumulate: int) -> RunConfig:
    data = {
        "name": "run",
        "runs": "runs",
        "data": {"tiles": "tiles", "batch_size": batch_size},
        "workers": {"count": workers},
        "optimizer": {"accumulate": accumulate},
    }
    return validate(RunConfig, data, "the test")


@pytest.mark.parametrize(("batch_size", "workers", "accumulate"), [(3, 1, 4), (15, 2, 8), (2, 3, 1), (1, 2, 1)])
def test_batches_with_less_than_a_tile_for_each_part_are_refused(
    batch_size: int, workers: int, accumulate: int
) -> None:
    message = one_sentence(lambda: shared_out(batch_size, workers, accumulate))
    assert f"data.batch_size {batch_size} is less than a tile" in message
    assert (
        f"optimizer.accumulate {accumulate} parts of workers.count {workers}; choose at least {workers * accumulate}"
        in message
    )


@pytest.mark.parametrize(
    ("batch_size", "workers", "accumulate"), [(8, 2, 4), (4, 1, 3), (7, 2, 3), (4, 1, 1), (4, 4, 1), (8, 3, 1)]
)
def test_batches_with_a_tile_for_each_part_pass(batch_size: int, workers: int, accumulate: int) -> None:
    assert shared_out(batch_size, workers, accumulate).optimizer.accumulate == accumulate


def refused(manifest: Manifest, runs: Path, **changes: Any) -> str:
    config = configured(manifest, runs, **changes)
    return one_sentence(lambda: prepare_run(config))


def test_tiles_without_labels_are_refused(tmp_path: Path, tile_set: Callable[..., Manifest]) -> None:
    manifest = tile_set(tmp_path / "tiles", tiles=12, tile_px=32)
    message = refused(manifest, tmp_path / "runs")
    assert message.startswith(f"the tiles of {manifest.uri} have 0 labels (none)")
    assert "ingest them with a label column" in message


def test_one_label_is_not_enough(labeled: Manifest, tmp_path: Path) -> None:
    manifest = relabeled(labeled, tmp_path / "tiles", ["tumour"] * 24)
    assert "have 1 labels (tumour)" in refused(manifest, tmp_path / "runs")


@pytest.mark.parametrize(("row", "split"), [(2, "train"), (17, "val")])
@pytest.mark.parametrize(("label", "said"), [(None, "no label"), ("fat", "the label 'fat'")])
def test_a_label_that_is_missing_or_no_class_is_refused_with_its_tile(
    labeled: Manifest, tmp_path: Path, row: int, split: str, label: str | None, said: str
) -> None:
    labels = read_table(labeled)["label"].to_pylist()
    labels[row] = label
    assert read_table(labeled)["split"][row].as_py() == split
    manifest = relabeled(labeled, tmp_path / "tiles", labels)
    message = refused(manifest, tmp_path / "runs", classes=("stroma", "tumour"))
    tile = read_table(labeled)["tile_id"][row].as_py()
    assert message.startswith(f"tile {tile} of {manifest.uri} has {said} (such tiles: 1)")
    assert "expected one of stroma, tumour" in message


def test_tiles_of_no_split_that_is_used_need_no_label(labeled: Manifest, tmp_path: Path) -> None:
    rows = read_table(labeled).select(["split", "label"]).to_pylist()
    labels = [None if row["split"] == "test" else row["label"] for row in rows]
    manifest = relabeled(labeled, tmp_path / "tiles", labels)
    assert prepare_run(configured(manifest, tmp_path / "runs")).card.classes == ("stroma", "tumour")


def test_tiles_without_masks_are_refused_for_segmentation_alone(
    tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    manifest = tile_set(tmp_path / "tiles", tiles=12, tile_px=32, masks=False, labels=True)
    message = refused(manifest, tmp_path / "runs", target="segmentation")
    assert message.startswith("8 tiles of split 'train'")
    assert "have no mask (first: case-0/0)" in message
    assert not prepare_run(configured(manifest, tmp_path / "runs")).source.masks


def test_a_class_that_would_be_taken_for_a_teachers_boundary_is_refused(labeled: Manifest, tmp_path: Path) -> None:
    changes = {"target": "segmentation", "classes": ("background", "tumour", "boundary")}
    assert "'boundary', which is reserved for the class that a teacher's boundary_px" in refused(
        labeled, tmp_path, **changes
    )


@pytest.mark.parametrize("fraction", [0.01, 1.0])
@pytest.mark.parametrize("target", ["classification", "segmentation"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_refused(labeled: Manifest, tmp_path: Path, split: str, target: str, fraction: float) -> None:
    rows = read_table(labeled).filter(pa.array([name != split for name in read_table(labeled)["split"].to_pylist()]))
    manifest = write_manifest(
        str(tmp_path / "tiles"), rows, tile_px=64, mpp=labeled.header.mpp, ingest="", storage=Storage()
    )
    message = refused(manifest, tmp_path / "runs", target=target, fraction=fraction)
    assert message.startswith(f"split '{split}' of {manifest.uri} is empty (it has ")


@pytest.mark.parametrize("target", ["classification", "segmentation"])
def test_the_smallest_fraction_leaves_a_case_of_every_label(labeled: Manifest, tmp_path: Path, target: str) -> None:
    prepared = prepare_run(configured(labeled, tmp_path, target, fraction=1e-6))
    assert prepared.cases
    labels = [row["label"] for row in read_table(labeled).to_pylist() if row["case"] in prepared.cases]
    assert set(labels) == {"stroma", "tumour"}


@pytest.mark.parametrize("target", ["classification", "segmentation"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "nowhere"}, "nowhere is neither a model folder"),
        ({"student__encoder": "csat_tinny"}, "did you mean csat_tiny"),
        ({"student__size_px": 96}, "would see 96 px"),
        ({"data__tiles": "nowhere"}, "nowhere holds no tile set"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_refused(
    labeled: Manifest, tmp_path: Path, target: str, changes: dict[str, Any], said: str
) -> None:
    assert said in refused(labeled, tmp_path, target=target, **changes)


def test_another_encoder_than_the_pretrained_one_is_refused(labeled: Manifest, tmp_path: Path, pretrained: str) -> None:
    changes = {"encoder": pretrained, "student__encoder": "resnet18", "classes": ("a", "b")}  # of two faults, first
    message = refused(labeled, tmp_path, **changes)
    assert message.startswith(f"{pretrained} was trained with the encoder csat_tiny and student.encoder is resnet18")
    assert message.endswith("set student.encoder=csat_tiny.")


def test_what_a_classification_is_sent_out_with(labeled: Manifest, tmp_path: Path) -> None:
    prepared = prepare_run(configured(labeled, tmp_path, loss=WEIGHTED, student__size_px=32))
    card = prepared.card
    assert (card.kind, card.classes, card.decoder_channels) == ("classification", ("stroma", "tumour"), ())
    assert card.train_cases == case_digests(labeled, "train")
    assert prepared.views == Views(32)
    assert prepared.cases is None
    assert prepared.class_weights == pytest.approx((1.0, 1.0))
    assert prepared.build_task() == TrainingTask(
        card.outputs,
        SupervisedLoss.model_validate({**WEIGHTED, "dice": None}),
        class_weights=prepared.class_weights,
    )
    assert isinstance(prepared.build_model(), Classifier)


def test_what_a_segmentation_of_few_cases_is_sent_out_with(labeled: Manifest, tmp_path: Path) -> None:
    prepared = prepare_run(configured(labeled, tmp_path, "segmentation", fraction=0.25, loss__dice__weight=0.5))
    assert prepared.cases is not None
    assert len(prepared.cases) == 1
    assert (prepared.card.kind, prepared.card.classes) == ("segmentation", ("background", "tissue"))
    assert prepared.card.train_cases == case_digests(labeled, "train", prepared.cases)
    assert prepared.card.train_cases != case_digests(labeled, "train")
    assert prepared.source.masks
    assert prepared.build_task() == TrainingTask(
        prepared.card.outputs, SupervisedLoss.model_validate({"dice": {"weight": 0.5}})
    )
    assert isinstance(prepared.build_model(), Segmenter)


def test_class_weights_are_those_of_the_cases_that_are_used(labeled: Manifest, tmp_path: Path) -> None:
    labels = [row["label"] if row["case"] != "case-0" else "stroma" for row in read_table(labeled).to_pylist()]
    manifest = relabeled(labeled, tmp_path / "tiles", labels)
    changes = {"loss": WEIGHTED, "classes": ("stroma", "tumour", "fat")}
    everything = prepare_run(configured(manifest, tmp_path / "runs", **changes))
    assert everything.class_weights == pytest.approx((16 / (2 * 10), 16 / (2 * 6), 0.0))
    few = prepare_run(configured(manifest, tmp_path / "runs", fraction=0.25, **changes))
    assert few.cases is not None
    rows = [row["label"] for row in read_table(manifest).to_pylist() if row["case"] in few.cases]
    counts = [rows.count(name) for name in ("stroma", "tumour")]
    assert few.class_weights == pytest.approx((*(len(rows) / (2 * count) for count in counts), 0.0))


@pytest.mark.parametrize("target", ["classification", "segmentation"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_pretrained_encoder_is_where_learning_begins(
    labeled: Manifest, tmp_path: Path, pretrained: str, target: str, frozen: bool
) -> None:
    prepared = prepare_run(configured(labeled, tmp_path, target, encoder=pretrained, frozen=frozen))
    model, (source, _, _) = prepared.build_model(), load(pretrained, Storage())
    given = {name.replace(".", "_"): tensor for name, tensor in find_encoder(source).named_parameters()}
    assert isinstance(model, Classifier | Segmenter)
    named = {name.replace(".", "_"): parameter for name, parameter in find_encoder(model).named_parameters()}
    carried = [(tensor, named[name]) for name, tensor in given.items()]
    assert all(torch.equal(first, second) for first, second in carried)
    assert all(parameter.requires_grad != frozen for _, parameter in carried)
    inside = {id(parameter) for _, parameter in carried}
    assert all(parameter.requires_grad for parameter in model.parameters() if id(parameter) not in inside)


def test_a_classifier_has_defaults_of_its_own_and_what_is_said_counts(labeled: Manifest) -> None:
    runs = Path("runs")
    pretrained, scratch = configured(labeled, runs, encoder="runs/first"), configured(labeled, runs)
    assert pretrained.optimizer.lr < scratch.optimizer.lr
    assert pretrained.optimizer.steps is not None
    assert scratch.optimizer.steps is not None
    for config in (pretrained, scratch):
        assert (config.head, config.data.balance, config.validation.keep) == ("probe_first", "label", "best")
        assert validate(FinetuneConfig, config.model_dump(), "the test") == config
    plain = {"data__balance": None, "optimizer__epochs": 3, "optimizer__lr": 0.1, "validation__keep": "last"}
    said = configured(labeled, runs, **plain)
    assert (said.data.balance, said.optimizer.steps, said.optimizer.epochs, said.optimizer.lr) == (None, None, 3, 0.1)
    assert (said.validation.keep, said.validation.patience) == ("last", None)
    assert said.epochs_of(10) == 3
    assert configured(labeled, runs, multi_label=True).data.balance is None
    assert configured(labeled, runs, head="probe").epochs_of(10) == 0
    segmenter = configured(labeled, runs, target="segmentation")
    assert (segmenter.optimizer.steps, segmenter.validation.keep) == (None, "last")


@pytest.mark.parametrize(("head", "steps"), [("probe", [0]), ("probe_first", [0, 4, 8]), ("fresh", [0, 4, 8])])
def test_a_probe_is_the_first_candidate_or_all(
    labeled: Manifest, pretrained: str, tmp_path: Path, head: str, steps: list[int]
) -> None:
    changes = {"head": head, "optimizer__epochs": 2, "validation__every_steps": 1, "encoder": pretrained}
    config = configured(labeled, tmp_path, **changes)
    spec, saved = prepare_run(config), []
    learner = build_learner(spec, labeled, torch.device("cpu"))
    fresh = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    training, validation = build_streams(spec, labeled, 0, 1)
    spec.initialize(learner, training)
    begun = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    moved = {name for name, tensor in begun.items() if not torch.equal(tensor, fresh[name])}
    assert moved == (set() if head == "fresh" else {"network.head.fc.weight", "network.head.fc.bias"})
    train(learner, learner.model, spec.build_task(), training, validation, config, Hooks(lambda _: None, saved.append))
    assert [metrics["step"] for metrics in saved] == steps
    assert learner.average is not None
    assert (learner.position.epoch, learner.best is not None) == (len(steps) - 1, True)
    if head == "probe":
        assert all(torch.equal(tensor, begun[name]) for name, tensor in learner.shipped.state_dict().items())
        assert saved[0]["val_balanced_accuracy"] > 0.5


def test_frozen_batch_norms_rest(labeled: Manifest, tmp_path: Path) -> None:
    weights = tmp_path / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), weights)
    config = configured(
        labeled, tmp_path, student={"encoder": "resnet10t", "weights": str(weights)}, batch_norm="frozen"
    )
    model = prepare_run(config).build_model().train()
    freeze_modules(model)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert model.network.conv1[0].weight.requires_grad
