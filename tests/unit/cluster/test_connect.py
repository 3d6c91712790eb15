"""What is said of a cluster that cannot be joined."""

import os
from unittest.mock import patch

import pytest
import ray
from ray._private.utils import check_version_info

from histill.cluster import connect
from histill.cluster.connect import asks_for_token, connect_cluster
from histill.errors import InputError, UnavailableError

pytestmark = pytest.mark.unit


def test_other_versions_are_named_with_ours() -> None:
    def refuse(*_: object, **__: object) -> None:
        check_version_info({"ray_version": "2.1.0", "python_version": "3.9.1"}, "this machine")  # as ray.init does

    with (
        patch.dict(os.environ, {"RAY_ADDRESS": "auto"}),
        patch.object(ray, "is_initialized", return_value=False),
        patch.object(ray, "init", refuse),
        pytest.raises(InputError) as caught,
        connect_cluster(),
    ):
        pass
    said = str(caught.value)
    assert said.startswith("Ray at auto has other versions (Ray 2.1.0, Python 3.9.1) than this process (Ray ")
    assert f"Ray {ray.__version__}, " in said
    assert said.endswith("`ray job submit`.")
    assert "\n" not in said


def test_who_does_not_answer_says_nothing_of_tokens() -> None:
    assert asks_for_token("127.0.0.1:1") is None


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (
            Exception("The current node timed out during startup. This could happen"),
            UnavailableError,
            "(it did not answer in time",
        ),
        (
            RuntimeError("Failed to start GCS.  Last 0 lines of error files:"),
            UnavailableError,
            "run the same command again",
        ),
        (OSError(28, "No space left on device"), InputError, "make room below $RAY_TMPDIR (or /tmp) and in /dev/shm"),
        (OSError("validate_socket_filename failed: AF_UNIX path length"), InputError, "a shorter path"),
        (PermissionError(13, "Permission denied", "/x"), InputError, "a folder that you may write to"),
        (ValueError("Ray component gcs is trying to use a port number 1 used by"), InputError, "end the other Ray"),
        (RuntimeError("RAY_AUTH_TOKEN_PATH is set but file cannot be opened"), InputError, "a file that holds one"),
        (Exception("first line\nsecond line http://u:PLANTED@h"), UnavailableError, "(first line)"),
        (Exception("cannot reach http://u:PLANTED/x@h?token=PLANTED"), UnavailableError, "(cannot reach http://h"),
        (Exception(), UnavailableError, "(Exception)"),
    ],
)
@pytest.mark.parametrize("address", ["local", "127.0.0.1:1"])
def test_whatever_keeps_ray_from_starting_is_one_sentence(
    raised: Exception, kind: type[InputError], said: str, address: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise raised

    with (
        patch.dict(os.environ, {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}),
        patch.object(connect, "_refusal", return_value=None),
        patch.object(ray, "is_initialized", return_value=False),
        patch.object(ray, "init", refuse),
        pytest.raises(InputError) as caught,
        connect_cluster(),
    ):
        pass
    message = str(caught.value)
    assert "PLANTED" not in message
    assert "\n" not in message
    if address == "local":
        assert type(caught.value) is kind
        assert message.startswith("Ray cannot be started on this machine (")
        assert said in message
    else:
        assert message.startswith("Ray at 127.0.0.1:1 cannot be joined (")


@pytest.mark.parametrize("address", ["http://u:PLANTED@h:1", "ray://u:PLANTED/x@h:1", "u:PLANTED@h", "u:PLANTED@h:1"])
def test_an_address_of_ray_with_a_password_is_not_repeated(address: str) -> None:
    with patch.dict(os.environ, {"RAY_ADDRESS": address}), pytest.raises(InputError) as caught, connect_cluster():
        pass
    assert "PLANTED" not in str(caught.value)


def test_ray_is_told_no_secret_of_the_environment() -> None:
    """Its dashboard shows the runtime environments of jobs."""
    told: list[object] = []
    planted = {"AWS_SECRET_ACCESS_KEY": "PLANTED-key", "MLFLOW_TRACKING_PASSWORD": "PLANTED-word"}
    with (
        patch.dict(os.environ, {"RAY_ADDRESS": "auto", **planted}),
        patch.object(ray, "is_initialized", return_value=False),
        patch.object(ray, "init", lambda *given, **named: told.extend([given, named])),
        patch.object(ray, "shutdown"),
        connect_cluster(),
    ):
        pass
    assert told
    assert "PLANTED" not in repr(told)
