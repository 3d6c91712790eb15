"""Where an ingest works: in this process, unless there is a cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histill.errors import InputError

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
