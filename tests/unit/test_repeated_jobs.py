"""Jobs given again, at once, or with another configuration: what is missing is made, and nothing is mixed.

They run here in one process, without Ray, which is not what is asked about.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch

import histill.predict.predict as predicting
import histill.teachers.cache as caching
import histill.tiles.claim as claims
import histill.tiles.ingest as ingesting
from histill.artifacts import model_folder
from histill.artifacts.model_folder import ModelCard, build
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.config.predict_tiles import PredictConfig
from histill.errors import InputError
from histill.predict.predict import predict
from histill.teachers.cache import cache_responses
from histill.tiles.ingest import ingest
from histill.tiles.manifest import HEADER_NAME
from histill.tiles.manifest_file import TABLE_NAME, read_manifest
from histill.tiles.parts import make_part
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

PX, COUNT = 64, 6


@pytest.fixture(autouse=True)
def _serial(in_process: Callable[..., None]) -> None:
    in_process(predicting, caching, ingesting)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(60, 220, (PX, PX, 3), dtype=np.uint8)
        (folder / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=90))
    lines = ["image,case", *(f"{number}.jpg,c{number}" for number in range(COUNT))]
    (folder / "index.csv").write_text("\n".join(lines))
    return folder


def config(images: Path, output: Path, mpp: float = 0.5, **changes: Any) -> IngestConfig:
    data = {"output": str(output), "tile_px": PX, "images": {"index": str(images / "index.csv"), "mpp": mpp}}
    return validate(IngestConfig, data | {"rows_per_shard": 2, "rows_per_group": 1} | changes, "the test")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ingests go on together once both have found their output free."""
    both, look = threading.Barrier(2), claims.Claim.look

    def looked(claim: claims.Claim) -> bool:
        found = look(claim)
        both.wait(30)
        return found

    monkeypatch.setattr(claims.Claim, "look", looked)


def at_once(configs: Sequence[IngestConfig]) -> list[Any]:
    said: dict[int, Any] = {}

    def run(number: int) -> None:
        try:
            said[number] = ingest(configs[number]).manifest
        except InputError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [said[number] for number in range(len(configs))]


def test_of_two_configurations_at_once_one_is_refused_before_it_writes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {}
    for mpp in (0.5, 1.0):
        ingest(config(images, tmp_path / str(mpp), mpp))
        alone[mpp] = files(tmp_path / str(mpp))
    meeting(monkeypatch)
    said = at_once([config(images, tmp_path / "t", mpp) for mpp in (0.5, 1.0)])
    (refused,) = [each for each in said if isinstance(each, str)]
    assert "holds tiles of another configuration (images.mpp was" in refused
    (made,) = [each for each in said if not isinstance(each, str)]
    assert files(tmp_path / "t") == alone[made.header.mpp]
    assert set(read_table(made)["mpp"].to_pylist()) == {made.header.mpp}


def test_one_configuration_twice_at_once_makes_one_set(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(config(images, tmp_path / "alone"))
    meeting(monkeypatch)
    one, other = at_once([config(images, tmp_path / "t")] * 2)
    assert one.header == other.header
    assert files(tmp_path / "t") == files(tmp_path / "alone")


def test_a_failed_ingest_does_not_occupy_its_folder(images: Path, tmp_path: Path) -> None:
    output, kept = tmp_path / "t", (images / "5.jpg").read_bytes()
    (images / "5.jpg").write_bytes(kept[:50])
    with pytest.raises(InputError, match="max_unreadable is 0"):
        ingest(config(images, output))
    (images / "5.jpg").write_bytes(kept)
    made = ingest(config(images, output, mpp=1.0)).manifest
    assert set(read_table(made)["mpp"].to_pylist()) == {1.0}
    with pytest.raises(InputError, match=r"another configuration \(images\.mpp was 1\.0 and is 0\.5\)"):
        ingest(config(images, output))
    assert ingest(config(images, output, mpp=1.0)).reused


def test_a_failed_ingest_goes_on_where_it_was(images: Path, tmp_path: Path) -> None:
    kept = (images / "5.jpg").read_bytes()
    (images / "5.jpg").unlink()
    with pytest.raises(InputError, match="max_unreadable is 0"):
        ingest(config(images, tmp_path / "t"))
    (images / "5.jpg").write_bytes(kept)
    assert ingest(config(images, tmp_path / "t")).parts_reused == 2
    ingest(config(images, tmp_path / "alone"))
    assert files(tmp_path / "t") == files(tmp_path / "alone")


def test_after_a_failure_a_changed_index_is_taken_in_anew(images: Path, tmp_path: Path) -> None:
    kept = (images / "5.jpg").read_bytes()
    (images / "5.jpg").unlink()
    with pytest.raises(InputError, match=r"again, which keeps finished parts \(with a changed index it starts over\)"):
        ingest(config(images, tmp_path / "t"))
    (images / "5.jpg").write_bytes(kept)
    with (images / "index.csv").open("a") as index:
        index.write("\n")
    assert ingest(config(images, tmp_path / "t")).parts_reused == 0


def test_an_ingest_that_is_refused_at_once_writes_nothing(images: Path, tmp_path: Path) -> None:
    (images / "index.csv").write_text("image,case\n")
    with pytest.raises(InputError):
        ingest(config(images, tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_an_interrupted_ingest_keeps_its_folder(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(function: Callable[[Any], Any], items: Sequence[Any], **_: Any) -> Iterator[Any]:
        yield function(items[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingesting, "map_tasks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ingest(config(images, tmp_path / "t"))
    with pytest.raises(InputError, match=r"another configuration .*; name another output, or empty this one"):
        ingest(config(images, tmp_path / "t", mpp=1.0))
    assert ingest(config(images, tmp_path / "t")).parts_reused == 1


def test_the_tiles_are_the_same_wherever_their_sources_lie(images: Path, tmp_path: Path) -> None:
    made = ingest(config(images, tmp_path / "t")).manifest.header
    elsewhere = images.rename(tmp_path / "elsewhere")
    assert ingest(config(elsewhere, tmp_path / "u")).manifest.header.digest == made.digest
    with pytest.raises(InputError, match=r"another configuration \(images\.index was"):
        ingest(config(elsewhere, tmp_path / "t"))


def test_what_a_straggler_of_a_failed_ingest_writes_is_mixed_with_nothing(images: Path, tmp_path: Path) -> None:
    kept = (images / "5.jpg").read_bytes()
    (images / "5.jpg").unlink()
    old = config(images, tmp_path / "t")
    with pytest.raises(InputError):
        ingest(old)
    (images / "5.jpg").write_bytes(kept)
    ingest(config(images, tmp_path / "t", mpp=1.0))
    before = files(tmp_path / "t")
    units, _ = ingesting._units(old, claims.claim_of(old))
    for unit in units:
        make_part(unit)
    after = files(tmp_path / "t")
    manifest = read_manifest(str(tmp_path / "t"), Storage())
    needed = [*read_table(manifest)["shard"].unique().to_pylist(), TABLE_NAME, HEADER_NAME]
    assert {name: after[name] for name in needed} == {name: before[name] for name in needed}
    assert ingest(config(images, tmp_path / "t", mpp=1.0)).reused


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def spoil(path: Path) -> None:
    path.write_bytes(b"{")


@pytest.mark.parametrize("harm", [lose, cut, spoil])
@pytest.mark.parametrize("name", ["shard", "shard and header", "shard and part", TABLE_NAME, HEADER_NAME])
def test_the_same_ingest_mends_what_is_lost_or_damaged(
    images: Path, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    made = ingest(config(images, tmp_path / "t")).manifest
    undisturbed = files(tmp_path / "t")
    shard = read_table(made)["shard"][2].as_py()
    part = next(path for path in undisturbed if path.startswith("parts/") and "00001" in path)
    for each in {"shard": [shard], "shard and header": [shard, HEADER_NAME], "shard and part": [shard, part]}.get(
        name, [name]
    ):
        harm(tmp_path / "t" / each)
    again = ingest(config(images, tmp_path / "t"))
    assert not again.reused
    assert again.parts_done == ("shard" in name)
    assert files(tmp_path / "t") == undisturbed
    assert ingest(config(images, tmp_path / "t")).reused


def test_a_set_of_an_earlier_version_is_made_again(images: Path, tmp_path: Path) -> None:
    ingest(config(images, tmp_path / "t"))
    undisturbed, header = files(tmp_path / "t"), tmp_path / "t" / HEADER_NAME
    header.write_text(json.dumps(json.loads(header.read_text()) | {"version": 2}))
    with pytest.raises(InputError, match=r"not a manifest of this version \(.*\); ingest the tiles again"):
        read_manifest(str(tmp_path / "t"), Storage())
    ingest(config(images, tmp_path / "t"))
    assert files(tmp_path / "t") == undisturbed


def test_tiles_that_no_ingest_made_are_not_written_over(images: Path, tmp_path: Path) -> None:
    ingest(config(images, tmp_path / "t"))
    (tmp_path / "t" / "ingest.json").unlink()
    before = files(tmp_path / "t")
    with pytest.raises(InputError, match="holds tiles of another configuration"):
        ingest(config(images, tmp_path / "t", mpp=1.0))
    (tmp_path / "t" / HEADER_NAME).write_text("{}")
    with pytest.raises(InputError, match="not a manifest of this version"):
        ingest(config(images, tmp_path / "t", mpp=1.0))
    assert files(tmp_path / "t").keys() == before.keys()


def cache_of(tiles: Path, output: Path) -> CacheConfig:
    data = {"tiles": str(tiles), "teacher": {"classical": True}, "output": str(output), "workers": {"count": 1}}
    return validate(CacheConfig, data, "the test")


@pytest.mark.parametrize("harm", [lose, cut, spoil])
@pytest.mark.parametrize("which", ["shard", "header", "both"])
def test_the_same_command_mends_responses(
    images: Path, tmp_path: Path, which: str, harm: Callable[[Path], None]
) -> None:
    made = ingest(config(images, tmp_path / "t")).manifest
    what = cache_of(tmp_path / "t", tmp_path / "out")
    folder = Path(cache_responses(what).uri)
    undisturbed = files(folder)
    harmed = {"shard": [read_table(made)["shard"][2].as_py()], "header": [caching.HEADER_NAME]}
    for name in harmed.get(which) or [each for names in harmed.values() for each in names]:
        harm(folder / name)
    assert not cache_responses(what).reused
    assert files(folder) == undisturbed
    assert cache_responses(what).reused


def predictions_of(tiles: Path, output: Path, folder: Path, **changes: Any) -> PredictConfig:
    folder.mkdir(exist_ok=True)
    card = ModelCard(
        kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("a", "b"), mean=(0.7, 0.5, 0.7),
        std=(0.2, 0.2, 0.2), tile_px=PX, tile_mpp=0.5, size_px=PX, tiles_digest="cd" * 32, train_cases=(), histill="0",
    )  # fmt: skip
    torch.manual_seed(0)
    model_folder.save(str(folder), build(card), card)
    data = {"model": str(folder), "tiles": str(tiles), "output": str(output), "heatmaps": False}
    return validate(PredictConfig, data | {"workers": {"count": 1}} | changes, "the test")


def rows_of(folder: Path) -> Mapping[str, Any]:
    return {str(path.relative_to(folder)): pq.read_table(path).to_pylist() for path in folder.rglob("*.parquet")}


@pytest.mark.parametrize("which", ["shard", "header", "both", "swapped"])
def test_the_same_command_mends_predictions(images: Path, tmp_path: Path, which: str) -> None:
    made = ingest(config(images, tmp_path / "t")).manifest
    what = predictions_of(tmp_path / "t", tmp_path / "out", tmp_path / "model")
    folder = Path(predict(what).predictions)
    undisturbed = rows_of(folder)
    one, two = (folder / read_table(made)["shard"][row].as_py() for row in (0, 2))
    if which in ("shard", "both"):
        cut(one)
    if which in ("header", "both"):
        lose(folder / predicting.HEADER_NAME)
    if which == "swapped":
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        lose(folder / predicting.HEADER_NAME)
    again = predict(what)
    assert not again.reused
    assert again.tiles == COUNT
    assert rows_of(folder) == undisturbed
    assert predict(what).reused


def test_tiles_that_are_mended_are_predicted_again(images: Path, tmp_path: Path) -> None:
    made = ingest(config(images, tmp_path / "t")).manifest
    what = predictions_of(tmp_path / "t", tmp_path / "out", tmp_path / "model", max_corrupt=1)
    shard = tmp_path / "t" / read_table(made)["shard"][0].as_py()
    whole, table = shard.read_bytes(), pq.read_table(shard)
    images_then = table["image"].to_pylist()
    images_then[1] = images_then[0]  # decodable, and another tile's
    pq.write_table(table.set_column(1, table.schema.field(1), [images_then]), shard, row_group_size=1)
    first = predict(what)
    assert (first.tiles, first.corrupt) == (COUNT, 1)
    shard.write_bytes(whole)
    again = predict(what)
    assert (again.tiles, again.corrupt, again.reused) == (COUNT, 0, False)
    assert predict(what).reused


@pytest.mark.parametrize("text", ["", "[]", "5", "null", '{"images": '])
def test_what_is_no_record_of_an_ingest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / claims.RECORD_NAME).write_text(text)
    with pytest.raises(InputError, match=r"ingest\.json is not the record of an ingest"):
        claims.Claim(str(tmp_path), {"images": None, "slides": None}, Storage()).look()
