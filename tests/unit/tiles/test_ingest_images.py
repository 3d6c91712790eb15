"""Whole sets of images and masks, ingested in this process: one meaning for all masks, and conversions are reported."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import histill.tiles.ingest
import histill.tiles.mask_survey
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.stream.decode import decode_image, decode_mask
from histill.tiles.ingest import IngestReport, ingest
from histill.tiles.masks import IGNORED

pytestmark = pytest.mark.unit
PX = 32
Ingest = Callable[..., IngestReport]


@pytest.fixture(autouse=True)
def _serial(in_process: Callable[..., None]) -> None:
    in_process(histill.tiles.ingest, histill.tiles.mask_survey, backwards=True)


def png(pixels: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def tissue(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 200, (PX, PX, 3)).astype(np.uint8)


def mask_of(*values: int, dtype: type = np.uint8) -> np.ndarray:
    """Stripes of these values."""
    return np.repeat(np.resize(np.array(values, dtype), PX), PX).reshape(PX, PX)


def write_set(folder: Path, masks: Mapping[str, bytes]) -> None:
    lines = ["image,mask,case"]
    for number, (name, mask) in enumerate(masks.items()):
        (folder / f"{name}.png").write_bytes(png(tissue(number)))
        (folder / f"{name}-mask").write_bytes(mask)
        lines.append(f"{name}.png,{name}-mask,{name}")
    (folder / "index.csv").write_text("\n".join(lines))


def take_in(folder: Path, output: str = "set", **images: Any) -> IngestReport:
    data = {
        "output": str(folder / output),
        "tile_px": PX,
        "rows_per_shard": 2,
        "rows_per_group": 2,
        "images": {"index": str(folder / "index.csv"), "mpp": 0.5, **images},
    }
    return ingest(validate(IngestConfig, data, "here"))


def stored_masks(report: IngestReport) -> dict[str, np.ndarray]:
    return {row["tile_id"]: decode_mask(row["mask"], PX) for row in stored(report)}


def stored(report: IngestReport) -> list[dict[str, Any]]:
    return [
        row
        for file in sorted(Path(report.manifest.uri, "shards").rglob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


def test_255_means_the_same_in_every_mask(tmp_path: Path) -> None:
    """The second mask by itself looks like a foreground, and the fourth is as most tools write them."""
    write_set(
        tmp_path,
        {
            "classes": png(mask_of(0, 1, 2)),
            "void": png(mask_of(0, 255)),
            "both": png(mask_of(0, 1, 255)),
            "nothing": png(mask_of(0)),
        },
    )
    report = take_in(tmp_path)
    found = {name: sorted(set(mask.ravel().tolist())) for name, mask in stored_masks(report).items()}
    assert found == {
        "classes.png": [0, 1, 2],
        "void.png": [0, IGNORED],
        "both.png": [0, 1, IGNORED],
        "nothing.png": [0],
    }
    shares = [(11 + 16 + 11 + 32) / 128, (11 + 11) / 128, 10 / 128, (16 + 10) / 128]
    assert report.notes[
        -1
    ] == "pixels of the masks: class 0 {:.2%}, class 1 {:.2%}, class 2 {:.2%}; {:.2%} ignored.".format(*shares)
    assert take_in(tmp_path).notes == report.notes  # a finished set repeats its notes


def test_0_and_255_alone_are_0_and_1(tmp_path: Path) -> None:
    bits = Image.fromarray(mask_of(0, 255) > 0)
    write_set(tmp_path, {"gray": png(mask_of(0, 255)), "bits": png(bits), "full": png(mask_of(255))})
    report = take_in(tmp_path)
    assert all(set(mask.ravel().tolist()) <= {0, 1} for mask in stored_masks(report).values())
    assert stored_masks(report)["full.png"].all()
    assert report.notes[-1].endswith("255 read as class 1.")


def test_what_cannot_be_told_is_refused_with_the_key_that_decides(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": png(mask_of(0, 1)), "b": png(mask_of(0, 255)), "c": png(mask_of(0))})
    with pytest.raises(
        InputError, match=r"hold 255 \(first: .*b-mask\) and other classes \(first: .*a-mask\)"
    ) as caught:
        take_in(tmp_path)
    assert "images.mask_values={0: 0, 1: 1, 255: 255} to ignore it, or 255: 1 for a foreground" in str(caught.value)
    ignored = take_in(tmp_path, "ignored", mask_values={0: 0, 1: 1, 255: 255})
    assert set(stored_masks(ignored)["b.png"].ravel().tolist()) == {0, IGNORED}
    foreground = take_in(tmp_path, "foreground", mask_values={0: 0, 1: 1, 255: 1})
    assert set(stored_masks(foreground)["b.png"].ravel().tolist()) == {0, 1}
    (tmp_path / "b-mask").write_bytes(png(mask_of(0, 1)))  # a refused set may be fixed, and is read again
    assert set(stored_masks(take_in(tmp_path))["b.png"].ravel().tolist()) == {0, 1}


def test_shades_of_a_mask_that_was_resized_are_no_classes(tmp_path: Path) -> None:
    smooth = Image.fromarray(mask_of(0, 255)).resize((PX // 2, PX)).resize((PX, PX), Image.Resampling.BILINEAR)
    blurred = Image.fromarray(np.linspace(0, 255, PX * PX).reshape(PX, PX).astype(np.uint8))
    for name, mask in (("smooth", smooth.rotate(90)), ("blurred", blurred)):
        write_set(tmp_path, {"hard": png(mask_of(0, 255)), name: png(mask)})
        if len(set(np.asarray(mask).ravel().tolist())) > 2:
            with pytest.raises(InputError, match="as in masks that were resized or compressed"):
                take_in(tmp_path, name)


def test_masks_of_16_bits_and_values_of_ones_own(tmp_path: Path) -> None:
    write_set(tmp_path, {"deep": png(mask_of(0, 7, 65535, dtype=np.uint16)), "b": png(mask_of(0, 7))})
    with pytest.raises(InputError, match=r"deep-mask holds colors or values above 255 \(65535\)"):
        take_in(tmp_path)
    found = stored_masks(take_in(tmp_path, "other", mask_values={0: 0, 7: 1, 65535: 255}))
    np.testing.assert_array_equal(found["deep.png"], mask_of(0, 1, 255))
    (tmp_path / "b-mask").write_bytes(png(mask_of(0, 8)))
    with pytest.raises(InputError, match=r"b-mask holds the value 8 \(8\), and one of 0, 7, 65535 was expected"):
        take_in(tmp_path, "third", mask_values={0: 0, 7: 1, 65535: 255})


def test_parts_that_were_read_in_another_meaning_are_made_again(tmp_path: Path) -> None:
    """Only a mask that could not be read at first shows that 255 is void."""
    masks = {"c": png(mask_of(0, 1, 255)), "a": png(mask_of(0, 255)), "b": png(mask_of(0, 255))}
    write_set(tmp_path, {**masks, "c": masks["c"][:40]})
    with pytest.raises(InputError, match="c-mask cannot be decoded"):
        take_in(tmp_path)
    assert len(list((tmp_path / "set" / "parts").rglob("*.parquet"))) == 2
    (tmp_path / "c-mask").write_bytes(masks["c"])
    report = take_in(tmp_path)
    assert (report.parts_done, report.parts_reused) == (2, 0)
    assert set(stored_masks(report)["a.png"].ravel().tolist()) == {0, IGNORED}
    assert report.manifest.header.digest == take_in(tmp_path, "undisturbed").manifest.header.digest


def test_masks_that_are_replaced_after_a_refusal_are_read_again(tmp_path: Path) -> None:
    """The first masks' values would turn the new ones' foreground into ignored pixels."""
    write_set(tmp_path, {"a": png(mask_of(0, 1, 255)), "b": png(mask_of(0, 1))})
    (tmp_path / "a.png").write_bytes(png(tissue(0))[:60])
    with pytest.raises(InputError, match=r"a\.png cannot be decoded"):
        take_in(tmp_path)
    write_set(tmp_path, {name: png(mask_of(0, 255)) for name in "ab"})
    assert {value for mask in stored_masks(take_in(tmp_path)).values() for value in mask.ravel().tolist()} == {0, 1}


def test_a_pass_over_masks_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, {name: png(mask_of(0, 1)) for name in "abcdef"})
    read: list[str] = []

    def noted(uri: str, storage: Any) -> bytes:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(Path(uri).name)
        return Path(uri).read_bytes()

    monkeypatch.setattr(histill.tiles.mask_survey, "read_file", noted)
    with pytest.raises(KeyboardInterrupt):
        take_in(tmp_path)
    records = list((tmp_path / "set" / "parts").rglob("*-masks.json"))
    assert [json.loads(each.read_text())["found"] for each in records] == [[0, 1]]
    read.clear()
    with pytest.raises(KeyboardInterrupt):
        take_in(tmp_path)
    assert not set(read) & {"e-mask", "f-mask"}  # the last part came first


def test_what_was_done_to_images_is_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(tissue(0)).save(tmp_path / "turned.png", exif=exif)
    layers = np.dstack([tissue(1), np.full((PX, PX), 255, np.uint8)])
    layers[:, PX // 2 :] = 0
    Image.fromarray(layers).save(tmp_path / "clear.png")
    Image.fromarray(tissue(2)).save(tmp_path / "profiled.png", icc_profile=b"a scanner's own" + bytes(128))
    Image.fromarray(tissue(3)).save(tmp_path / "plain.png")
    names = ("turned", "clear", "profiled", "plain")
    (tmp_path / "index.csv").write_text("image,case\n" + "".join(f"{name}.png,{name}\n" for name in names))
    report = take_in(tmp_path)
    assert report.notes == (
        "images turned upright, as the orientation in the file says: 1 (first: turned.png).",
        "images transparent in part and laid over white: 1 (first: clear.png).",
        "images stored with a color profile or gamma other than sRGB's, which is not applied: 1 (first: profiled.png).",
    )
    found = {row["tile_id"]: decode_image(row["image"], PX) for row in stored(report)}
    np.testing.assert_array_equal(found["turned.png"], np.rot90(tissue(0), -1))
    assert (found["clear.png"][:, PX // 2 :] == 255).all()
    np.testing.assert_array_equal(found["clear.png"][:, : PX // 2], tissue(1)[:, : PX // 2])
    for number, name in ((2, "profiled"), (3, "plain")):
        np.testing.assert_array_equal(found[f"{name}.png"], tissue(number))
    assert (
        next(row["image"] for row in stored(report) if row["tile_id"] == "profiled.png")
        == (tmp_path / "profiled.png").read_bytes()
    )


@pytest.mark.parametrize("values", [{-1: 0}, {0: 256}, {0: -1}, {}], ids=str)
def test_impossible_values(tmp_path: Path, values: dict[int, int]) -> None:
    with pytest.raises(InputError, match="mask_values"):
        take_in(tmp_path, mask_values=values)


def test_a_set_with_values_of_its_own_is_found_again(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": png(mask_of(0, 7))})
    assert not take_in(tmp_path, mask_values={0: 0, 7: 1}).reused
    assert take_in(tmp_path, mask_values={0: 0, 7: 1}).reused
    with pytest.raises(InputError, match=r"another configuration \(images\.mask_values"):
        take_in(tmp_path, mask_values={0: 0, 7: 2})


def test_a_folder_in_place_of_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "index.csv").write_text("image,case\nfolder.png,1\n")
    with pytest.raises(InputError, match=r"folder\.png"):
        take_in(tmp_path)
