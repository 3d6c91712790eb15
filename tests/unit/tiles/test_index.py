"""An index in CSV: every row is read as written, or refused with its line; nothing is dropped silently."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from histill.config.common import Storage
from histill.config.ingest_tiles import Columns, ImageSource, IngestConfig, SplitRule
from histill.errors import InputError
from histill.tiles.image_index import ImageIndex, read_image_index
from histill.tiles.index import lines_named, read_index
from histill.tiles.ingest import ingest
from histill.tiles.manifest import Manifest, case_digests
from histill.tiles.manifest_file import write_manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.splits import assign_split, check_pinned
from histill.tiles.summary import count_labels, find_equal_tiles, find_missing_classes, find_shared_tiles, find_warnings

pytestmark = pytest.mark.unit
COMPOSED, DECOMPOSED = "M\u00fcller", "Mu\u0308ller"


def index_of(folder: Path, text: str | bytes, **columns: Any) -> ImageIndex:
    (folder / "index.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_image_index(
        ImageSource(index=str(folder / "index.csv"), columns=Columns(**columns), mpp=0.5), Storage()
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('image,case,note\na.png,1,ok\nb.png,1,"re-cut\nc.png,1,ok\n', r"line 3 of .* has a quote that is not closed"),
        ('image,case,note\na.png,1,"x\nb.png,1,y"\nc.png,1,z\n', r"line 2 of .* runs on to line 3; close the quote"),
        ('image,case\na.png,"1" b\n', r"line 2 of .* one inside a quoted value"),
        ("image,case,note\n" + '"' + "a.png,1,x\n" * 20_000, r"line 2 of .* a quote that is not closed"),
        ("image,label,case,label\na.png,x,1,y\n", r"the column 'label' twice \(columns 2 and 4\)"),
        ("image, label,case,label \na.png,x,1,y\n", r"the column 'label' twice \(columns 2 and 4\)"),
        ("image;label;case\na.png;x;1\n", r"separated by ';', and a comma was expected"),
        ("image\tcase\na.png\t1\n", r"separated by '\\t'"),
        ("Image,case\na.png,1\n", r"has no column 'image' \(it is written 'Image'\); it has Image, case"),
        ("image,case\n\na.png,1\nb.png,1,2\n", "line 4 of .* has 3 values for 2 columns"),
        ("image,case\na.png,1\nb.png\n", "line 3 of .* has 1 values for 2 columns"),
        ("image,case\na.png,1\nb.png, \n", "line 3 of .* has no value for 'case'"),
        (b"image,case\na.png,1\nb.png,M\xfcller\n", r"is not UTF-8 text \(line 3\)"),
        ("image,case\na.png,1\n".encode("utf-16"), r"is not UTF-8 text \(line 1\)"),
        ("image,case\na.png,1\nb\0.png,1\n", "line 3 of .* holds a NUL character"),
        ("image,case\n", "a header and no rows"),
        ("", "has no column 'image'; it has none"),
        ("image,case\na.png,1\nb.png,2\na.png,1\n", r"the image a\.png twice, on lines 2 and 4"),
        ("image,case\na.png,1\n./a.png,2\n", r"the image \./a\.png twice \(as a\.png\), on lines 2 and 3"),
        ("image,case\nd/../a.png,1\na.png,2\n", r"the image a\.png twice \(as d/\.\./a\.png\), on lines 2 and 3"),
        (f"image,case\n{COMPOSED}.png,1\n{DECOMPOSED}.png,2\n", "twice .* on lines 2 and 3"),
        ("image,label,case\na.png,Tumour,1\nb.png,tumour,2\n", "'Tumour' on line 2 and 'tumour' on line 3"),
        ("image,label,case\na.png,a b,1\nb.png,a  b|c,2\n", "'a b' on line 2 and 'a  b' on line 3"),
        ("image,label,case\na.png,ab,1\nb.png,a\u200bb,2\n", r"'ab' on line 2 and 'a\\u200bb' on line 3"),
        ("image,mask,case\na.png,./a.png,1\n", r"line 2 of .* names a\.png as an image and as its mask"),
    ],
    ids=lambda value: repr(value[-24:]),
)
def test_refused_with_the_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match=said) as caught:
        index_of(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_links_to_one_file_are_one_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    os.symlink("a.png", tmp_path / "b.png")
    with pytest.raises(InputError, match=r"the image b\.png twice \(as a\.png\), on lines 2 and 3"):
        index_of(tmp_path, "image,case\na.png,1\nb.png,2\n")
    (tmp_path / "d").mkdir()
    os.symlink("d", tmp_path / "e")
    with pytest.raises(InputError, match=r"the image e/c\.png twice \(as d/c\.png\), on lines 2 and 3"):
        index_of(tmp_path, "image,case\nd/c.png,1\ne/c.png,2\n")


def test_dots_are_resolved_for_object_storage_which_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import histill.tiles.index

    text = b"image,case\n./a.png,1\nd/../b.png,2\nx//c.png,3\n"
    monkeypatch.setattr(histill.tiles.index, "read_bytes", lambda *_: text)
    found = read_image_index(ImageSource(index="s3://bucket/set/index.csv", mpp=0.5), Storage()).rows
    expected = ["s3://bucket/set/a.png", "s3://bucket/set/b.png", "s3://bucket/set/x//c.png"]
    assert [row.uri for row in found] == expected
    assert [row.name for row in found] == ["./a.png", "d/../b.png", "x//c.png"]


@pytest.mark.parametrize(
    "text",
    [
        "image,label,case\na.png,x,007\nb.png,,8\n",
        "\ufeffimage,label,case\r\na.png,x,007\r\nb.png,,8\r\n",
        "image,label,case\ra.png,x,007\rb.png,,8",
        ' image , "label",case\n a.png ,"x", 007 \n\n"b.png",, "8"\n'.replace(', "', ',"'),
        "\n".join(["image,label,case", "a.png,x,007", "", "b.png,,8"]),
        'image, label, "case"\n"a.png", "x", "007"\n"b.png", , "8"\n',
    ],
    ids=["plain", "BOM and CRLF", "CR", "spaces and quotes", "blank line", "spaces before quotes"],
)
def test_ways_to_write_one_index(tmp_path: Path, text: str) -> None:
    found = index_of(tmp_path, text)
    assert [(row.name, row.label, row.case) for row in found.rows] == [("a.png", "x", "007"), ("b.png", None, "8")]
    assert [note for note in found.notes if "no label" in note]


def test_what_is_left_out_is_said_with_its_lines(tmp_path: Path) -> None:
    text = "image,label,case,mask,note\na.png,x,P1,m.png,\n,,,,\nb.png,,p1,m.png,\nc.png,x,P2,,\n , ,,,\n"
    assert index_of(tmp_path, text).notes == (
        "2 rows of the index without any value are left out (lines 3, 6).",
        "columns of the index that are not used: note.",
        "1 of 3 images have no label (line 4).",
        "1 of 3 images have no mask (line 5).",
        f"the mask {tmp_path}/m.png is that of 2 images (lines 2, 4).",
        "the cases 'P1' and 'p1' (lines 2, 4) differ only in case or spaces and count as different ones.",
    )


def test_a_column_that_looks_like_labels_is_named(tmp_path: Path) -> None:
    text = "image,Class,case,y,Masks\na.png,x,1,3,m.png\n"
    unused, label, mask = index_of(tmp_path, text).notes
    assert unused == "columns of the index that are not used: y."  # the others are named once, in what follows
    assert "no column 'label'; images.columns.label=Class takes it" in label
    assert "no column 'mask'; images.columns.mask=Masks takes it" in mask
    assert index_of(tmp_path, text, label="Class", mask=None).notes == (
        "columns of the index that are not used: y, Masks.",
    )


def test_cases_and_labels_are_the_same_in_both_forms_of_unicode(tmp_path: Path) -> None:
    text = f"image,label,case\na.png,{DECOMPOSED},{DECOMPOSED}\nb.png,{COMPOSED},{COMPOSED}\n"
    assert {(row.label, row.case) for row in index_of(tmp_path, text).rows} == {(COMPOSED, COMPOSED)}
    rule = SplitRule(pinned={"test": (DECOMPOSED,)})
    check_pinned(rule, [COMPOSED])
    assert assign_split(COMPOSED, rule) == "test"
    with pytest.raises(ValueError, match="pinned twice"):
        SplitRule(pinned={"test": (DECOMPOSED,), "val": (COMPOSED,)})
    one, other = (manifest_of(tmp_path / form, [("x", "train", form)]) for form in (COMPOSED, DECOMPOSED))
    assert case_digests(one, "train") == case_digests(other, "train")


def test_labels_of_one_tile_are_separated_alike(tmp_path: Path) -> None:
    found = index_of(tmp_path, "image,label,case\na.png, a | b|,1\nb.png,a|b,1\nc.png,|,1\n").rows
    assert [row.label for row in found] == ["a|b", "a|b", None]


def test_values_of_masks_without_any_mask_are_refused(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("image,case\na.png,1\n")
    source = ImageSource(index=str(tmp_path / "index.csv"), mpp=0.5, mask_values={0: 0, 255: 1})
    with pytest.raises(InputError, match="names no mask; name its column"):
        read_image_index(source, Storage())


def test_lines_are_named_but_not_all() -> None:
    assert lines_named([3]) == "line 3"
    assert lines_named([3, 4]) == "lines 3, 4"
    assert lines_named(list(range(1, 9))) == "lines 1, 2, 3, 4, 5 and 3 more"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        read_index(str(tmp_path / "none.csv"), Storage(), needed=())
    source = ImageSource(index=str(tmp_path / "none.csv"), mpp=0.5)
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        ingest(IngestConfig(output=str(tmp_path / "set"), images=source))
    assert not (tmp_path / "set").exists()


def manifest_of(folder: Path, tiles: list[tuple[str | None, str, str]]) -> Manifest:
    """A set of tiles with these labels, splits and cases; each tile's content is its label."""
    rows = [
        {
            "tile_id": f"{number}.png",
            "slide": f"{number}.png",
            "case": case,
            "x": 0,
            "y": 0,
            "mpp": 0.5,
            "size_px": 64,
            "label": label,
            "has_mask": False,
            "split": split,
            "shard": "shards/a.parquet",
            "row_group": 0,
            "row": number,
            "content": str(label),
        }
        for number, (label, split, case) in enumerate(tiles)
    ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST)
    return write_manifest(str(folder), table, tile_px=64, mpp=0.5, ingest="i", storage=Storage())


def test_classes_by_split_and_those_that_are_missing(tmp_path: Path) -> None:
    manifest = manifest_of(
        tmp_path,
        [("b|a", "train", "1"), ("b", "train", "1"), ("a", "val", "2"), (None, "val", "2"), ("c", "test", "3")],
    )
    assert count_labels(manifest) == {"a": {"train": 1, "val": 1}, "b": {"train": 2}, "c": {"test": 1}}
    assert find_missing_classes(manifest) == [
        "split 'test' has no tile of 'a', 'b'.",
        "split 'train' has no tile of 'c'.",
        "split 'val' has no tile of 'b', 'c'.",
    ]
    assert count_labels(manifest_of(tmp_path / "none", [(None, "train", "1")])) == {}


def test_equal_tiles_are_said_and_whether_splits_share_them(tmp_path: Path) -> None:
    """The tiles named as being in different splits are in different splits."""
    tiles = [("x", "train", "1"), ("y", "train", "1"), ("x", "train", "2"), ("z", "val", "3"), ("z", "val", "3")]
    tiles.append(("z", "test", "4"))
    manifest = manifest_of(tmp_path, tiles)
    assert find_equal_tiles(manifest.rows) == ["5 tiles are equal byte for byte (first: 0.png and 2.png)."]
    (warning,) = [said for said in find_warnings(manifest) if "equal" in said]
    assert warning.startswith("3 tiles are equal and lie in different splits (first: 3.png and 5.png)")
    within = manifest_of(tmp_path / "a", tiles[:3]).rows
    assert len(find_equal_tiles(within)) == 1
    assert find_shared_tiles(within) == []
    none = manifest_of(tmp_path / "b", [("x", "train", "1"), ("y", "val", "2")]).rows
    assert find_equal_tiles(none) == find_shared_tiles(none) == []
