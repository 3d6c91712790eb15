"""Ingest on Ray: whatever interrupts it, the tile set is the same, and nothing is in it twice."""

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

import histill.tiles.ingest
from histill.cluster.parallel import Share, map_tasks
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.local.s3 import S3Server
from histill.storage.control import exists, read_bytes, remove, write_bytes
from histill.storage.filesystems import arrow_filesystem
from histill.storage.uris import join
from histill.tiles.ingest import IngestReport, ingest
from histill.tiles.manifest import HEADER_NAME
from histill.tiles.manifest_file import read_manifest
from histill.tiles.shards import content_hash
from histill.tiles.slide_records import read_slides
from histill.tiles.whole_table import read_table

pytestmark = [pytest.mark.ray_local, pytest.mark.usefixtures("ray_local")]

PX = 32
COUNT = 23
CMU = Path(__file__).parents[3] / "shared" / "data" / "wsi" / "CMU-1-Small-Region.svs"


def png(seed: int, values: int = 256, channels: tuple[int, ...] = (3,)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, values, (PX, PX, *channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if channels else "PNG", quality=90)
    return buffer.getvalue()


def write_images(folder: str, storage: Storage) -> str:
    lines = ["image,mask,patient,kind"]
    for number in range(COUNT):
        write_bytes(join(folder, f"{number}.jpg"), png(number), storage)
        write_bytes(join(folder, f"{number}-mask.png"), png(number, values=2, channels=()), storage)
        lines.append(f"{number}.jpg,{number}-mask.png,{number // 4:03d},{'ab'[number % 2]}")
    write_bytes(join(folder, "index.csv"), "\n".join(lines).encode(), storage)
    return join(folder, "index.csv")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(str(tmp_path / "images"), Storage())
    return tmp_path / "images"


def config_of(output: str, index: str, **changes: Any) -> IngestConfig:
    columns = {"case": "patient", "mask": "mask", "label": "kind"}
    data = {
        "output": output,
        "tile_px": PX,
        "images": {"index": index, "mpp": 0.25, "columns": columns},
        "split": {"train": 0.5, "val": 0.3, "test": 0.2, "pinned": {"test": ["003"], "train": ["000"]}},
        "rows_per_shard": 4,
        "rows_per_group": 3,
    }
    return validate(IngestConfig, data | changes, "test")


def check_contents(report: IngestReport, storage: Storage) -> None:
    """Every row is where the manifest says, with the bytes that it says, and every shard's row is named once."""
    table = read_table(read_manifest(report.manifest.uri, storage))
    rows = table.to_pylist()
    assert len({row["tile_id"] for row in rows}) == len(rows)
    for shard in {row["shard"] for row in rows}:
        filesystem, path = arrow_filesystem(join(report.manifest.uri, shard), storage)
        file = pq.ParquetFile(filesystem.open_input_file(path))
        named = [row for row in rows if row["shard"] == shard]
        assert len(named) == file.metadata.num_rows
        for row in named:
            stored = file.read_row_group(row["row_group"]).slice(row["row"], 1).to_pylist()[0]
            assert stored["tile_id"] == row["tile_id"]
            assert content_hash(stored["image"], stored["mask"]) == row["content"]
            assert row["has_mask"] == (stored["mask"] is not None)


def test_images_with_labels_and_masks(images: Path, tmp_path: Path) -> None:
    report = ingest(config_of(str(tmp_path / "set"), str(images / "index.csv")))
    header = report.manifest.header
    assert (header.tiles, header.masks, header.labels, header.mpp) == (COUNT, COUNT, ("a", "b"), 0.25)
    assert sum(header.splits.values()) == COUNT
    assert (report.reused, report.skipped, report.parts_done) == (False, (), 6)
    check_contents(report, Storage())
    rows = read_table(report.manifest).to_pylist()
    assert [row["tile_id"] for row in rows] == [f"{number}.jpg" for number in range(COUNT)]
    for case in {row["case"] for row in rows}:
        assert len({row["split"] for row in rows if row["case"] == case}) == 1
    assert {row["split"] for row in rows if row["case"] == "003"} == {"test"}


def test_a_finished_set_is_reused_and_another_config_refused(images: Path, tmp_path: Path) -> None:
    config = config_of(str(tmp_path / "set"), str(images / "index.csv"))
    first = ingest(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    again = ingest(config)
    assert again.reused
    assert again.manifest.header == first.manifest.header
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before
    with pytest.raises(InputError, match=r"another configuration \(split\.seed was 0 and is 1\)"):
        ingest(config.model_copy(update={"split": config.split.model_copy(update={"seed": 1})}))
    index = images / "index.csv"
    index.write_text("\n".join(index.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match="sha256 of the index was"):
        ingest(config)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_interrupted_and_repeated(images: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    index = str(images / "index.csv")
    undisturbed = ingest(config_of(str(tmp_path / "undisturbed"), index))
    config = config_of(str(tmp_path / "set"), index)

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from islice(map_tasks(*arguments, **options), after)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(histill.tiles.ingest, "map_tasks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ingest(config)
    assert not (tmp_path / "set" / HEADER_NAME).exists()
    report = ingest(config)
    assert report.manifest.header == undisturbed.manifest.header
    assert report.parts_reused >= after
    assert report.parts_done + report.parts_reused == 6
    check_contents(report, Storage())


def test_a_torn_record_of_a_part_is_made_again(images: Path, tmp_path: Path) -> None:
    config = config_of(str(tmp_path / "set"), str(images / "index.csv"))
    digest = ingest(config).manifest.header.digest
    (tmp_path / "set" / HEADER_NAME).unlink()
    (record,) = tmp_path.glob("set/parts/*/00002-images.parquet")
    record.write_bytes(record.read_bytes()[:100])
    report = ingest(config)
    assert (report.parts_done, report.parts_reused) == (1, 5)
    assert report.manifest.header.digest == digest


def test_corrupt_images_are_named_and_skipped_up_to_the_limit(images: Path, tmp_path: Path) -> None:
    index = str(images / "index.csv")
    clean = ingest(config_of(str(tmp_path / "clean"), index)).manifest.header
    kept = {name: (images / name).read_bytes() for name in ("5.jpg", "17.jpg", "18-mask.png")}
    (images / "5.jpg").write_bytes(kept["5.jpg"][:300])
    (images / "17.jpg").unlink()
    (images / "18-mask.png").write_bytes(b"")
    output = tmp_path / "set"
    with pytest.raises(InputError) as caught:
        ingest(config_of(str(output), index))
    assert "max_unreadable is 0" in str(caught.value)
    assert any(name in str(caught.value) for name in kept)
    assert not (output / HEADER_NAME).exists()
    assert list((output / "parts").iterdir())

    report = ingest(config_of(str(output), index, max_unreadable=3))
    assert len(report.skipped) == 3
    assert all(any(name in reason for reason in report.skipped) for name in kept)
    assert report.manifest.header.tiles == COUNT - 3
    assert report.manifest.header.skipped == report.skipped
    check_contents(report, Storage())

    for name, data in kept.items():
        (images / name).write_bytes(data)
    (output / HEADER_NAME).unlink()
    assert ingest(config_of(str(output), index)).manifest.header == clean


def test_images_of_another_size(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.jpg is 32 x 32 px and 64 x 64 was expected"):
        ingest(config_of(str(tmp_path / "set"), str(images / "index.csv"), tile_px=64))


def test_object_storage(s3: S3Server, images: Path, tmp_path: Path) -> None:
    storage = Storage(endpoint=s3.endpoint)
    here = ingest(config_of(str(tmp_path / "set"), str(images / "index.csv"))).manifest.header
    folder = f"s3://{s3.bucket}/{tmp_path.name}"
    index = write_images(f"{folder}/images", storage)
    config = config_of(f"{folder}/set", index, storage={"endpoint": s3.endpoint})
    report = ingest(config)
    assert report.manifest.header.digest == here.digest
    check_contents(report, storage)
    assert ingest(config).reused
    # What a truncated upload would leave is found by the reader of the set.
    table = join(config.output, "manifest.parquet")
    write_bytes(table, read_bytes(table, storage)[:-10], storage)
    with pytest.raises(InputError, match=r"manifest\.parquet does not match its header's digest: it was cut short"):
        read_manifest(config.output, storage)
    remove(join(config.output, read_table(report.manifest)["shard"][0].as_py()), storage)
    again = ingest(config)
    assert (again.parts_done, again.parts_reused, again.manifest.header) == (1, 5, report.manifest.header)
    check_contents(again, storage)


def slides_config(output: str, index: str, **changes: Any) -> IngestConfig:
    data = {
        "output": output,
        "slides": {"index": index, "mpp": 1.0, "split_within_slide": True},
        "split": {"pinned": {"train": ["upper"], "test": ["lower"]}},
        "rows_per_shard": 5,
        "rows_per_group": 2,
    }
    return validate(IngestConfig, data | changes, "test")


@pytest.mark.skipif(not CMU.exists(), reason="the slide is not here")
def test_regions_of_a_real_slide_from_object_storage(s3: S3Server, tmp_path: Path) -> None:
    storage = Storage(endpoint=s3.endpoint)
    folder = f"s3://{s3.bucket}/{tmp_path.name}"
    write_bytes(f"{folder}/slide.svs", CMU.read_bytes(), storage)
    (tmp_path / "slide.svs").write_bytes(CMU.read_bytes())
    text = "slide,case,left,top,right,bottom\nslide.svs,upper,0,0,1,0.5\nslide.svs,lower,0,0.5,1,1\n"
    digests = []
    for place in (folder, str(tmp_path)):
        write_bytes(f"{place}/slides.csv", text.encode(), storage)
        report = ingest(slides_config(f"{place}/set", f"{place}/slides.csv", storage={"endpoint": s3.endpoint}))
        check_contents(report, storage)
        assert report.manifest.counts_of("train")[1] == report.manifest.counts_of("test")[1] == 1
        assert report.manifest.header.tiles >= 6
        record = read_slides(report.manifest, storage)["slide"]
        assert (record.width, record.height, record.mpp) == (2220, 2967, 0.499)
        assert record.tile_side == pytest.approx(256 / 0.499)
        assert record.identity == "6335ea0e6cc54c2cba64bb265d3c713a50cd84484924e3a9c109558c13521d5c"  # OpenSlide's
        assert exists(f"{place}/set/thumbnails/00000-slide.png", storage)
        digests.append(report.manifest.header.digest)
    assert digests[0] == digests[1]
    config = slides_config(f"{folder}/set", f"{folder}/slides.csv", storage={"endpoint": s3.endpoint})
    assert ingest(config).reused
    write_bytes(f"{folder}/slide.svs", CMU.read_bytes() + b"more", storage)
    with pytest.raises(InputError, match=r"slide\.svs has been replaced since"):
        ingest(config)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_slide_by_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one thread, by several, and by a task for each shard on whatever node: the same files, also after a loss."""
    noise = np.random.default_rng(3).integers(0, 80, (640, 512, 3))
    picture = (noise + np.array([150, 40, 120])).astype(np.uint8)
    dots = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tiff", picture, tile=(64, 64), photometric="rgb", **dots)

    def made(name: str, share: Share, **workers: int) -> IngestReport:
        slides = {"paths": [str(tmp_path / "a.tiff")], "mpp": 0.5, "min_tissue": 0.0}
        data = {"output": str(tmp_path / name), "tile_px": PX, "slides": slides, "workers": workers}
        monkeypatch.setattr(histill.tiles.ingest, "share_cpus", lambda *_, **__: share)
        config = validate(IngestConfig, data | {"rows_per_shard": 50, "rows_per_group": 16}, "test")
        return ingest(config)

    report = made("one", Share(1, 1), count=0)
    assert (report.manifest.header.tiles, len(report.manifest.shards())) == (320, 7)
    check_contents(report, Storage())
    expected = files(tmp_path / "one")
    for name, share in {"threads": Share(None, 3), "nodes": Share(None, 2, spread=True)}.items():
        made(name, share)
        assert files(tmp_path / name) == expected
    (lost,) = (tmp_path / "nodes").glob("shards/*/*-0003.parquet")
    lost.unlink()
    assert made("nodes", Share(None, 1, spread=True)).parts_done == 1
    assert files(tmp_path / "nodes") == expected


def test_slides_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    (tmp_path / "slides.csv").write_text("slide,case\ntext.svs,upper\nnone.svs,lower\n")
    config = slides_config(str(tmp_path / "set"), str(tmp_path / "slides.csv"), max_unreadable=1)
    with pytest.raises(InputError) as caught:
        ingest(config)
    assert "2 of the sources cannot be used and max_unreadable is 1" in str(caught.value)
    assert "text.svs is not in a format" in str(caught.value)
    assert "none.svs does not exist" in str(caught.value)
    with pytest.raises(InputError, match="gave no tile"):
        ingest(slides_config(str(tmp_path / "set"), str(tmp_path / "slides.csv"), max_unreadable=2))


def doubled(item: int) -> int:
    if item < 0:
        raise InputError(f"{item} is negative.", code="index-wrong-value")
    return 2 * item


def test_map_tasks() -> None:
    assert sorted(map_tasks(doubled, range(40), cpus=0.5)) == list(range(0, 80, 2))
    assert list(map_tasks(doubled, [])) == []
    with pytest.raises(InputError, match=r"^-1 is negative\.$") as caught:
        list(map_tasks(doubled, [1, -1, 2]))
    assert (type(caught.value), caught.value.code) == (InputError, "index-wrong-value")
