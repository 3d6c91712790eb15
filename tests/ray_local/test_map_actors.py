"""Work handed to actors by Ray Data."""

import threading
from collections.abc import Callable

import pytest

from histill.cluster.parallel import map_actors
from histill.config.common import Workers
from histill.local.ray_head import RayHead

pytestmark = pytest.mark.ray_local


def make_doubler() -> Callable[[str], dict[str, str]]:
    return lambda item: {item: 2 * item}


def test_no_thread_that_asks_ray_for_blocks_outlives_the_loop(ray_local: RayHead) -> None:
    """One that asks while Ray is shut down ends the process."""
    asking: set[str] = set()
    found = {}
    for result in map_actors(make_doubler, (), ["a", "b", "c"], Workers(count=1, cpus=0.5)):
        found |= result
        asking |= {each.name for each in threading.enumerate() if each.name.startswith(("iter_", "Prefetcher"))}
    assert found == {"a": "aa", "b": "bb", "c": "cc"}
    assert not asking
