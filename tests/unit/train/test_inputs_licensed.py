"""The license of a teacher goes through caches and encoders to every model that learned from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from histill.artifacts.model_folder import ModelCard, TaughtBy, build, save
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.distill_student import DistillConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.runs import RunConfig
from histill.teachers import cache as caching
from histill.teachers.cache import HEADER_NAME, CachedResponses, cache_responses, read_header
from histill.teachers.encoder_presets import PRESETS
from histill.tiles.manifest import Manifest
from histill.train.prepare import prepare_run
from histill.train.run_folder import RunRecord, open_record, save_record

pytestmark = pytest.mark.unit

STORAGE = Storage()
PRESET = "kaiko-vits16"  # not for commercial use
MIT = {"name": "MIT", "commercial": True, "source": "https://example.org/LICENSE"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=24, tile_px=64, labels=True)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The keys of a network of the preset's kind, with random weights and one block."""
    folder = tmp_path_factory.mktemp("vit")
    shape = {"img_size": 32, "embed_dim": 384, "depth": 1, "num_heads": 6, "dynamic_img_size": True}
    save_for_hf(timm.create_model("vit_small_patch16_224", num_classes=0, **shape), folder, safe_serialization=True)
    options = {name: value for name, value in shape.items() if name != "dynamic_img_size"}
    return {"folder": str(folder), "size_px": 32, "tile_px": 64, "options": options}


@pytest.fixture
def cache(manifest: Manifest, tmp_path: Path, in_process: Callable[..., None]) -> Callable[..., CachedResponses]:
    in_process(caching)

    def run(**teacher: Any) -> CachedResponses:
        data = {"tiles": manifest.uri, "teacher": teacher, "output": str(tmp_path / "caches")}
        return cache_responses(validate(CacheConfig, data, "the test"))

    return run


@pytest.fixture
def card_of(manifest: Manifest, tmp_path: Path) -> Callable[..., ModelCard]:
    """`card_of(config, **keys)`: the card of the model that such a run would make."""

    def check(config: type[RunConfig], **keys: Any) -> ModelCard:
        data = {
            "name": "run", "runs": str(tmp_path / "runs"), "data": {"tiles": manifest.uri, "batch_size": 4},
            "student": {"encoder": "resnet_gn", "size_px": 32}, **keys,
        }  # fmt: skip
        return prepare_run(validate(config, data, "the test")).card

    return check


def save_model(folder: Path, card: ModelCard) -> str:
    folder.mkdir()
    torch.manual_seed(0)
    save(str(folder), build(card), card)
    return str(folder)


def test_what_was_taught_by_what_was_taught_inherits_the_license(
    vit: dict[str, Any], cache: Callable[..., Any], card_of: Callable[..., ModelCard], tmp_path: Path
) -> None:
    taught_by = (TaughtBy(name=f"encoder teacher {vit['folder']} ({PRESET})", license=PRESETS[PRESET].license),)
    cached = cache(encoder={**vit, "preset": PRESET})
    assert cached.header.taught_by == taught_by
    first = card_of(PretrainConfig, embeddings={"k": {"responses": cached.uri}})
    assert first.taught_by == taught_by
    live = {"teacher": {"encoder": {**vit, "preset": PRESET}}, "normalize": "none"}
    assert card_of(PretrainConfig, embeddings={"k": live}).taught_by == taught_by

    encoder = save_model(tmp_path / "encoder", first)
    tuned = card_of(FinetuneConfig, target="classification", encoder=encoder)
    assert tuned.taught_by == taught_by
    assert cache(model=encoder).header.taught_by == taught_by
    again = card_of(PretrainConfig, embeddings={"k": {"responses": cache(model=encoder).uri}})
    assert again.taught_by == taught_by
    classifier = save_model(tmp_path / "classifier", tuned)
    distilled = card_of(DistillConfig, teacher={"model": classifier}, loss={"features": None})
    assert distilled.taught_by == taught_by
    assert card_of(FinetuneConfig, target="classification").taught_by == ()


def test_responses_that_were_cached_before_licenses_are_unknown_until_the_command_is_run_again(
    vit: dict[str, Any], cache: Callable[..., Any], card_of: Callable[..., ModelCard]
) -> None:
    cached = cache(encoder={**vit, "preset": PRESET})
    path = Path(cached.uri, HEADER_NAME)
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "taught_by"})
    )
    older = read_header(cached.uri, STORAGE)
    (unknown,) = card_of(PretrainConfig, embeddings={"k": {"responses": cached.uri}}).taught_by or ()
    assert unknown.name == f"embedding teacher k {older.teacher[:12]}, cached before licenses were recorded"
    assert unknown.license is None

    shards = {each: each.stat().st_mtime_ns for each in Path(cached.uri).rglob("*.parquet")}
    renewed = cache(encoder={**vit, "preset": PRESET})
    assert renewed.reused
    assert {each: each.stat().st_mtime_ns for each in Path(cached.uri).rglob("*.parquet")} == shards != {}
    assert renewed.header == read_header(cached.uri, STORAGE) == cached.header
    assert renewed.header.digest == older.digest  # so that runs on it go on
    (known,) = card_of(PretrainConfig, embeddings={"k": {"responses": cached.uri}}).taught_by or ()
    assert known.license == PRESETS[PRESET].license


def test_a_license_that_was_stated_is_kept_until_another_one_is(
    vit: dict[str, Any], cache: Callable[..., Any], card_of: Callable[..., ModelCard]
) -> None:
    (unsure,) = cache(encoder=vit).header.taught_by
    assert unsure.license.commercial is None  # the name in the folder is timm's own
    (stated,) = cache(encoder={**vit, "license": MIT}).header.taught_by
    assert stated.license.commercial is True
    assert cache(encoder=vit).header.taught_by == (stated,)
    (other,) = cache(encoder={**vit, "license": "CC-BY-NC-4.0"}).header.taught_by
    assert other.license.commercial is False


def test_weights_that_a_student_starts_from_are_named(
    manifest: Manifest, card_of: Callable[..., ModelCard], tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    student = {"encoder": "resnet18", "weights": str(path), "size_px": 32}
    keys = {"target": "classification"}
    name = f"encoder weights {path}"
    assert card_of(FinetuneConfig, student=student, **keys).taught_by == (TaughtBy(name=name),)
    free = card_of(FinetuneConfig, student={**student, "weights_license": "BSD-3-Clause"}, **keys).taught_by
    assert [(each.name, each.license and each.license.commercial) for each in free or ()] == [(name, True)]


def test_a_run_goes_on_when_a_license_has_been_put_on_record(manifest: Manifest, tmp_path: Path) -> None:
    def config(**weights: Any) -> FinetuneConfig:
        data = {
            "name": "run", "runs": str(tmp_path / "runs"), "data": {"tiles": manifest.uri, "batch_size": 4},
            "student": {"weights": "w.safetensors", **weights}, "target": "classification",
        }  # fmt: skip
        return validate(FinetuneConfig, data, "the test")

    begun = config().model_dump(mode="json")
    del begun["student"]["weights_license"]  # as an older version
    save_record(config(), RunRecord(kind=FinetuneConfig.kind, config=begun))
    open_record(config(weights_license="MIT"))
