"""What determines the tiles of a set, and so whether an earlier ingest goes on."""

from pathlib import Path
from typing import Any

import pytest

from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.tiles.claim import Claim, claim_of

pytestmark = pytest.mark.unit


def claim(tmp_path: Path, **slides: Any) -> Claim:
    source = {"paths": [str(tmp_path / "a.tiff")], "mpp": 0.5, **slides}
    return claim_of(validate(IngestConfig, {"output": str(tmp_path / "t"), "slides": source}, "test"))


def test_keys_that_came_later_do_not_change_the_claims_of_before(tmp_path: Path) -> None:
    plain = claim(tmp_path)
    assert plain.record == claim(tmp_path, keep_jpeg=False, overlap_px=0, icc=None).record
    assert set(plain.record["slides"]) == {
        *("paths", "index", "mpp", "magnification", "slide_mpp", "min_tissue", "jpeg_quality")
    }
    assert claim(tmp_path, keep_jpeg=True).digest != plain.digest
    assert claim(tmp_path, overlap_px=16).digest != plain.digest
    assert claim(tmp_path, icc="srgb").digest != plain.digest
