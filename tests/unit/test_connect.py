"""What is said of a cluster that cannot be joined."""

import os
from unittest.mock import patch

import pytest
import ray
from ray._private.utils import check_version_info

from histill.cluster.connect import asks_for_token, connected
from histill.errors import InputError

pytestmark = pytest.mark.unit


def test_other_versions_are_named_with_ours() -> None:
    def refuse(*_: object, **__: object) -> None:
        check_version_info({"ray_version": "2.1.0", "python_version": "3.9.1"}, "this machine")  # as ray.init does

    with (
        patch.dict(os.environ, {"RAY_ADDRESS": "auto"}),
        patch.object(ray, "is_initialized", return_value=False),
        patch.object(ray, "init", refuse),
        pytest.raises(InputError) as caught,
        connected(),
    ):
        pass
    said = str(caught.value)
    assert said.startswith("Ray at auto is of other versions (Ray 2.1.0, Python 3.9.1) than this process (Ray ")
    assert f"Ray {ray.__version__}, " in said
    assert said.endswith("`ray job submit`.")
    assert "\n" not in said


def test_who_does_not_answer_says_nothing_of_tokens() -> None:
    assert asks_for_token("127.0.0.1:1") is None
