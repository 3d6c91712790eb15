"""Which key was meant by a wrong one: the nearest full key, whatever its spelling or section."""

from pathlib import Path

import pytest

from histill.config.distill_student import DistillConfig
from histill.config.ingest_tiles import IngestConfig
from histill.config.keys import dotted_keys, nearest_key
from histill.config.load import load_config
from histill.config.predict_tiles import PredictConfig
from histill.config.pretrain_student import PretrainConfig
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import ScoreConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.search.configs import SEARCHES

pytestmark = pytest.mark.unit

RUN = ["name=a", "runs=r", "data.tiles=t", "teacher.classical=true"]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optimiser.epochs=3", "optimizer.epochs"),
        ("optimiser.lr=1e-3", "optimizer.lr"),
        ("optimiser.weight_decay=0.1", "optimizer.weight_decay"),
        ("optimiser={epochs: 3}", "optimizer.epochs"),
        ("optimiser={epochs: 3, lr: 1e-3}", "optimizer"),
        ("optimiser={}", "optimizer"),
        ("optimizer.epoch=3", "optimizer.epochs"),
        ("optimizer.learning_rate=1e-3", "optimizer.lr"),
        ("optimizer.wd=0.1", "optimizer.weight_decay"),
        ("epochs=3", "optimizer.epochs"),
        ("lr=1e-3", "optimizer.lr"),
        ("data.lr=1e-3", "optimizer.lr"),
        ("training.epochs=3", "optimizer.epochs"),
        ("batch_size=3", "data.batch_size"),
        ("tiles=x", "data.tiles"),
        ("data.flips=true", "data.augment.flips"),
        ("data.augment.shared_colours=true", "data.augment.shared_colors"),
        ("data.shared_colours=true", "data.augment.shared_colors"),
        ("augment.crop_px=64", "data.augment.crop_px"),
        ("storage.endpiont=http://h", "storage.endpoint"),
        ("storage.retries=3", "storage.retry_base_s"),
        ("storage.cache.max_gigabytes=3", "storage.cache.max_gb"),
        ("student.decoder_chanels=[1]", "student.decoder_channels"),
        ("studnet.encoder=csat", "student.encoder"),
        ("loss.temprature=2", "loss.soft_cross_entropy.temperature"),
        ("loss.soft=1", "loss.soft_cross_entropy.weight"),
        ("loss.temperature=2", "loss.soft_cross_entropy.temperature"),
        ("worker.count=2", "workers.count"),
        ("workers.gpu=1", "workers.gpus"),
        ("Optimizer.Epochs=3", "optimizer.epochs"),
        ("checkpoint-every=3", "checkpoint_every"),
    ],
)
def test_the_key_that_was_meant_is_named_in_full(override: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(PretrainConfig, None, [*RUN, override])
    assert f"is not a key; did you mean {meant!r}?" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "wrong", "meant"),
    [
        (DistillConfig, "labelled", "labeled"),
        (DistillConfig, "resize", "allow_fractional_ratio"),
        (DistillConfig, "loss.divergence.temprature", "loss.divergence.temperature"),
        (PromoteConfig, "licence", "license"),
        (PromoteConfig, "gates.cheaper", "gates.max_cost_ratio"),
        (PromoteConfig, "gates.draws", "gates.bootstrap_samples"),
        (ScoreConfig, "draws", "bootstrap_samples"),
        (SEARCHES.models["pretrain_student"], "aim", "objective"),
        (PretrainConfig, "data.keep_decoded", "data.cache_decoded"),
        (PromoteConfig, "gates.floor", "gates.floors"),
        (PromoteConfig, "floors", "gates.floors"),
        (ScoreConfig, "tiles", "held_out.tiles"),
        (ScoreConfig, "held_out.classical", "held_out.reference.classical"),
        (PredictConfig, "heatmap", "heatmaps"),
        (PredictConfig, "slide", "slides"),
        (IngestConfig, "images.tile_px", "tile_px"),
        (IngestConfig, "images.colums.case", "images.columns.case"),
        (IngestConfig, "pinned", "split.pinned"),
        (TeacherConfig, "classes_weights", "loss.cross_entropy.class_weights"),
        (TeacherConfig, "smoothing", "loss.cross_entropy.smoothing"),
        (TeacherConfig, "dice", "loss.dice.weight"),
        (TeacherConfig, "deep", "loss.deep.weight"),
        (DistillConfig, "loss.labels", "loss.cross_entropy"),
        (DistillConfig, "loss.labels.smoothing", "loss.cross_entropy.smoothing"),
    ],
)
def test_across_jobs(model: type, wrong: str, meant: str) -> None:
    assert nearest_key(wrong, list(dotted_keys(model))) == meant


@pytest.mark.parametrize("wrong", ["xyzzy", "data.xyzzy", "q.w.e.r.t.y", "über"])
def test_what_is_like_no_key_is_answered_with_those_there_are(wrong: str) -> None:
    assert nearest_key(wrong, list(dotted_keys(PretrainConfig))) is None
    with pytest.raises(InputError, match=r"the keys (there )?are "):
        load_config(PretrainConfig, None, [*RUN, f"{wrong}=1"])


def test_every_key_is_nearest_to_itself() -> None:
    for model in (PretrainConfig, DistillConfig, PromoteConfig, IngestConfig):
        names = list(dotted_keys(model))
        assert [nearest_key(name, names) for name in names] == names


def test_a_dotted_key_within_a_file_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("data.batch_size: 64\n")
    with pytest.raises(InputError, match=r"'data\.batch_size' \(value 64\) is not a key as it stands; write data, and"):
        load_config(PretrainConfig, str(path), RUN)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("embeddings.uni.wieght=1", r"did you mean 'embeddings\.uni\.weight'\?"),
        ("embeddings.uni.encoder.folder=/e", r"did you mean 'embeddings\.uni\.teacher\.encoder\.folder'\?"),
        ("embeddings.uni.xyzzy=1", r"the keys there are embeddings\.uni\.responses, "),
        ("embeddings.uni=/responses", r"set embeddings\.uni\.responses, "),
    ],
)
def test_keys_below_a_name_of_ones_choice_are_told_by_that_name(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config(PretrainConfig, None, [*RUN, override])


def test_keys_below_a_name_with_dots_are_told_by_the_whole_name() -> None:
    with pytest.raises(InputError, match=r"did you mean 'space\.student\.size_px\.choice'\?") as caught:
        load_config(SEARCHES.models["pretrain_student"], None, [*RUN, "space.student.size_px.chioce=[32, 64]"])
    assert "space.student.choice" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (PretrainConfig, "'data.tiles' is missing; set it in the file or as data.tiles=... on the command line."),
        (ScoreConfig, "'held_out.tiles' is missing; set it in the file or as held_out.tiles=... on the command line."),
        (
            DistillConfig,
            "'teacher' is missing; set teacher.classical, teacher.model, teacher.onnx or others below it, in the file "
            "or on the command line.",
        ),
    ],
)
def test_a_missing_section_is_told_by_the_keys_that_would_fill_it(model: type, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(model, None, [])
    assert said in str(caught.value)
