"""What the tests on a local Ray share: a real tile set in S3 and runs small enough for two cores."""

from collections.abc import Callable
from typing import Any

import pytest

from histill.config.load import set_value, validate
from histill.config.pretrain_student import PretrainConfig
from histill.local.ray_head import RayHead
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer
from histill.tiles.manifest import Manifest


@pytest.fixture(scope="session")
def tiles(ray_local: RayHead, s3: S3Server, tile_set: Callable[..., Manifest]) -> Manifest:
    """24 tiles of 64 px in S3; 16 to learn from, in four row groups. Do not change them."""
    return tile_set(f"s3://{s3.bucket}/ray-local/tiles")


@pytest.fixture(scope="module")
def small_run(s3: S3Server, tracking: TrackingServer, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The keys of a pretraining run of two epochs of four steps; `name` and `data.tiles` are missing.

    Each module has a folder of runs of its own, and its names for itself.
    """
    return {
        "runs": f"s3://{s3.bucket}/runs/{request.module.__name__}",
        "data": {"batch_size": 4, "decode_threads": 1},
        "student": {"encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8)},
        "teacher": {"classical": True},
        "optimizer": {"epochs": 2},
        "workers": {"count": 2, "cpus": 0.5},
        "tracking": {"uri": tracking.uri},
    }


@pytest.fixture(scope="module")
def pretraining(small_run: dict[str, Any]) -> Callable[..., PretrainConfig]:
    """`make(name, tiles, changes)`: a small run on the tile set at `tiles`; `changes` maps dotted keys to values.

    The name is that of the MLflow experiment as well.
    """

    def make(name: str, tiles: str, changes: dict[str, Any] | None = None) -> PretrainConfig:
        data: dict[str, Any] = small_run
        values = {"name": name, "data.tiles": tiles, "tracking.experiment": name, **(changes or {})}
        for key, value in values.items():
            data = set_value(data, key, value)
        return validate(PretrainConfig, data, "the test")

    return make
