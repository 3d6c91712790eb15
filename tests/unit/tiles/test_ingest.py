"""Where an ingest works: in this process, unless there is a cluster; and what ends it before it begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histill.errors import InputError
from testbed.folder_bucket import folder_bucket

pytestmark = pytest.mark.unit


def test_without_a_cluster_none_is_started(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = "slide\n" + "".join(
        f"{Path(write_slide(tmp_path / f'{name}.tiff', seed=ord(name))).name}\n" for name in "abc"
    )
    headers = []
    for address, workers in ((None, {}), (None, {"count": 2}), ("127.0.0.1:1", {"count": 0})):
        monkeypatch.setattr("ray.init", None)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if address is not None:
            monkeypatch.setenv("RAY_ADDRESS", address)
        report = ingest_slides(tmp_path, index, workers=workers, output=str(tmp_path / f"set{len(headers)}"))
        headers.append(report.manifest.header)
    assert headers[0] == headers[1] == headers[2]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match="no Ray answers"):
        ingest_slides(tmp_path, index, workers={}, output=str(tmp_path / "another"))


def test_slides_in_object_storage_are_checked_before_the_work_begins(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    for number, mpp in enumerate((0.5, 0.5, 4.0)):
        write_slide(tmp_path / "b" / f"{number}.tiff", seed=number, mpp=mpp)
    write_slide(tmp_path / "b" / "copy.tiff", seed=0)
    output = str(tmp_path / "b" / "set")
    with folder_bucket(tmp_path) as bucket, monkeypatch.context() as patch:
        patch.setattr("histill.tiles.ingest.connect_cluster", None)
        with pytest.raises(InputError, match=r"slide s3://b/2\.tiff has 4 um/px and tiles of 1 were asked for"):
            ingest_slides(tmp_path, "slide\ns3://b/0.tiff\ns3://b/1.tiff\ns3://b/2.tiff\n", output=output)
        split = {"pinned": {"train": ["x"], "test": ["y"]}}
        with pytest.raises(InputError, match=r"0\.tiff and s3://b/copy\.tiff are one slide and the cases"):
            ingest_slides(tmp_path, "slide,case\ns3://b/0.tiff,x\ns3://b/copy.tiff,y\n", output=output, split=split)
        assert not Path(output).exists()
        patch.undo()
        text = "slide,left,top,right,bottom\n" + "".join(f"s3://b/0.tiff,0,{n / 4},1,{(n + 1) / 4}\n" for n in range(4))
        bucket.ranges.clear()
        assert ingest_slides(tmp_path, text, output=output).manifest.header.tiles == 8
        assert len([start for _, start, _ in bucket.ranges if start == 0]) == 5  # a look, and one for each region
