"""The tile sets of the comparison, from the two public data sets, split by case or organ, never by image."""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from openslide import OpenSlide
from PIL import Image

from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.tiles.image_index import image_rows
from histill.tiles.manifest import HEADER_NAME, Manifest
from histill.tiles.manifest_file import read_manifest, write_manifest
from histill.tiles.parts import Unit, make_part
from histill.tiles.whole_table import read_table

STORAGE = Storage()
# EBHI-Seg records no resolution. Its nuclei are 5 to 6 px wide, those of NuInsSeg 35 to 40 px at 0.25 um/px.
BIOPSY_PX, BIOPSY_MPP = 224, 1.6
WINDOW_PX, WINDOW_SCALES = 64, (64, 96)  # a 512 px image is shrunk to these, so that its nuclei are 5 to 7 px wide
TEST_ORGANS = (
    "human rectum", "human pylorus", "human umbilical cord", "human kidney", "human muscle",
    "mouse spleen", "mouse femur", "mouse thymus",
)  # fmt: skip
VAL_ORGANS = ("human jejunum",)
TEST_SHARE, VAL_CASES, VAL_SHARE = 0.3, 2, 0.15
SMALL_SLIDE_PX, GLASS = 3000, 225  # glass: mean gray of a tile, in 0..255


def biopsies(data: Path, out: Path) -> Manifest:
    """EBHI-Seg: biopsies of six classes with masks of glands; three tenths of each class's cases are test cases."""
    test, others = _test_cases(data)
    rest = [case for cases in others for case in cases]
    val = sorted(rest, key=_chance)[:VAL_CASES]  # scored after every epoch, not used for selection
    return _ingested_biopsies(data, out / "biopsies", test, val, [case for case in rest if case not in val])


def validated_biopsies(data: Path, out: Path) -> Manifest:
    """The same with the same test cases; of each class's others enough are for validation to select by them."""
    test, others = _test_cases(data)
    kept = [max(1, round(VAL_SHARE * len(cases))) for cases in others]
    val = [case for cases, count in zip(others, kept, strict=True) for case in cases[:count]]
    train = [case for cases, count in zip(others, kept, strict=True) for case in cases[count:]]
    return _ingested_biopsies(data, out / "validated_biopsies", test, val, train)


def _test_cases(data: Path) -> tuple[list[str], list[list[str]]]:
    """The biopsies' test cases, and the other cases of each class."""
    images: dict[str, Counter[str]] = defaultdict(Counter)
    for row in _rows(data / "ebhi_seg" / "index.csv"):
        images[row["case"]][row["class"]] += 1
    by_class: dict[str, list[str]] = defaultdict(list)
    for case in sorted(images, key=_chance):
        by_class[images[case].most_common(1)[0][0]].append(case)
    counts = [max(2, round(TEST_SHARE * len(cases))) for cases in by_class.values()]
    test = [case for cases, count in zip(by_class.values(), counts, strict=True) for case in cases[:count]]
    return test, [cases[count:] for cases, count in zip(by_class.values(), counts, strict=True)]


def _ingested_biopsies(data: Path, out: Path, test: list[str], val: list[str], train: list[str]) -> Manifest:
    pins = {"test": test, "val": val, "train": train}
    columns = {"image": "image", "mask": "mask", "label": "class", "case": "case"}
    return _ingested(data / "ebhi_seg" / "index.csv", out, BIOPSY_PX, BIOPSY_MPP, columns, pins)


def windows(data: Path, out: Path) -> Manifest:
    """NuInsSeg at about the resolution of the biopsies: crops of images downscaled to two sizes."""
    folder = out / "window-images"
    written = []
    for row in _rows(data / "nuinsseg" / "index.csv"):
        for side in WINDOW_SCALES:
            tile, classes = _shrunk(data / "nuinsseg" / row["image"], data / "nuinsseg" / row["mask"], side)
            for top in sorted({0, side - WINDOW_PX}):
                for left in sorted({0, side - WINDOW_PX}):
                    window = np.s_[top : top + WINDOW_PX, left : left + WINDOW_PX]
                    name = f"{Path(row['image']).stem}-{side}-{top}-{left}"
                    written.append(_write(folder, name, tile[window], classes[window]) | {"organ": row["organ"]})
    return _ingested_organs(folder, written, out / "windows", WINDOW_PX, BIOPSY_MPP)


def unlabeled(data: Path, out: Path) -> Manifest:
    """Every tile that may be looked at, without a label: biopsies of training cases, whole images of nuclei, slides.

    All are tiles of `BIOPSY_PX`, whatever their magnification, so that the set's resolution is that of the biopsies
    alone. Validation cases are the biopsies' own; no test case and no test organ is among them.
    """
    if (out / "unlabeled" / HEADER_NAME).exists():
        return read_manifest(str(out / "unlabeled"), STORAGE)
    folder = out / "unlabeled-images"
    folder.mkdir(parents=True, exist_ok=True)
    known = read_table(biopsies(data, out)).select(["case", "split"]).to_pydict()
    split_of = dict(zip(known["case"], known["split"], strict=True))
    rows, val = [], {case for case, split in split_of.items() if split == "val"}
    for row in _rows(data / "ebhi_seg" / "index.csv"):
        if split_of[row["case"]] != "test":
            rows.append({"image": str((data / "ebhi_seg" / row["image"]).resolve()), "case": row["case"]})
    for row in _rows(data / "nuinsseg" / "index.csv"):
        if row["organ"] not in TEST_ORGANS:
            with Image.open(data / "nuinsseg" / row["image"]) as whole:
                tile = whole.convert("RGB").resize((BIOPSY_PX, BIOPSY_PX), Image.Resampling.BOX)
            rows.append({"image": _keep(folder, f"nuclei-{Path(row['image']).stem}", tile), "case": row["organ"]})
    for path in sorted((data / "wsi").glob("*.svs")):
        rows += [{"image": _keep(folder, name, tile), "case": path.stem} for name, tile in _cut(path)]
    index = folder / "index.csv"
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=("image", "case"))
        writer.writeheader()
        writer.writerows(rows)
    pins = {"test": (), "val": sorted(val), "train": sorted({row["case"] for row in rows} - val)}
    columns = {"image": "image", "case": "case"}
    return _ingested(index, out / "unlabeled", BIOPSY_PX, BIOPSY_MPP, columns, pins)


def _cut(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """The tiles of a slide at half its resolution (at its own below 3,000 px), those of glass left out, with names."""
    with OpenSlide(path) as slide:
        width, height = slide.dimensions
        side = BIOPSY_PX * (2 if max(width, height) > SMALL_SLIDE_PX else 1)
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                tile = slide.read_region((left, top), 0, (side, side)).convert("RGB")
                tile = tile.resize((BIOPSY_PX, BIOPSY_PX), Image.Resampling.BOX)
                if np.asarray(tile).mean() < GLASS:
                    yield f"{path.stem}-{top}-{left}", tile


def _keep(folder: Path, name: str, tile: Image.Image) -> str:
    path = folder / f"{name}.png"
    tile.save(path)
    return str(path)


def _ingested_organs(folder: Path, rows: list[dict[str, str]], out: Path, tile_px: int, mpp: float) -> Manifest:
    index = folder / "index.csv"
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=("image", "mask", "organ"))
        writer.writeheader()
        writer.writerows(rows)
    others = sorted({row["organ"] for row in rows} - {*TEST_ORGANS, *VAL_ORGANS})
    pins = {"test": TEST_ORGANS, "val": VAL_ORGANS, "train": others}
    return _ingested(index, out, tile_px, mpp, {"image": "image", "mask": "mask", "case": "organ"}, pins)


def _ingested(
    index: Path, out: Path, tile_px: int, mpp: float, columns: dict[str, str], pins: dict[str, Any]
) -> Manifest:
    """Ingest an index like `jobs/ingest_tiles.py`, without Ray; a finished set is reused."""
    if (out / HEADER_NAME).exists():
        return read_manifest(str(out), STORAGE)
    keys = {
        "output": str(out),
        "tile_px": tile_px,
        "images": {"index": str(index), "mpp": mpp, "columns": columns},
        "split": {"pinned": {split: tuple(cases) for split, cases in pins.items()}},
        "rows_per_group": 16,
    }
    config = validate(IngestConfig, keys, "the benchmark")
    assert config.images is not None
    part = make_part(Unit("images", config, "", images=tuple(image_rows(config.images, STORAGE))))
    if part.unreadable:
        raise SystemExit(f"{len(part.unreadable)} images of {index} cannot be used: {part.unreadable[0]}")
    return write_manifest(
        str(out), part.rows, tile_px=tile_px, mpp=mpp, ingest=_digest(keys), storage=STORAGE
    )  # fmt: skip


def _shrunk(image: Path, mask: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Downscale an image by area averages, and its mask by majority."""
    with Image.open(image) as whole, Image.open(mask) as classes:
        size = (side, side)
        covered = np.asarray(
            classes.convert("L").point(lambda value: 255 * (value > 127)).resize(size, Image.Resampling.BOX)
        )
        return np.asarray(whole.convert("RGB").resize(size, Image.Resampling.BOX)), (covered > 127).astype(np.uint8)


def _write(folder: Path, name: str, tile: np.ndarray, classes: np.ndarray) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    for picture, kind in ((tile, "image"), (classes, "mask")):
        Image.fromarray(picture).save(folder / f"{name}-{kind}.png")
    return {"image": f"{name}-image.png", "mask": f"{name}-mask.png"}


def _rows(index: Path) -> Sequence[dict[str, str]]:
    if not index.exists():
        raise SystemExit(f"{index} is missing; give the folder that holds ebhi_seg/ and nuinsseg/ with --data.")
    with index.open(newline="") as file:
        return list(csv.DictReader(file))


def _chance(case: str) -> str:
    return hashlib.sha256(case.encode()).hexdigest()


def _digest(keys: dict[str, Iterable[Any]]) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
