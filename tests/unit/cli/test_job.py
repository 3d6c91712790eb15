"""What every job does with its command line, its errors and its last line."""

import json
import os
from collections.abc import Callable

import pytest
from pydantic import Field
from ray.exceptions import RayTaskError

from histill.cli.job import Outcome, run_job
from histill.config.base import Strict, Uri
from histill.config.common import Storage
from histill.config.pretrain_student import PretrainConfig
from histill.errors import HistillError, InputError, UnavailableError

pytestmark = pytest.mark.unit


class Example(Strict):
    """An example job."""

    name: str
    source: Uri = Field("s3://bucket/key", description="where from")
    rate: float = Field(0.5, gt=0, description="how fast")
    storage: Storage = Storage()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTILL_VERBOSE", "0")  # what --verbose sets is put back


def run(main: Callable[[Example], Outcome], *arguments: str) -> int:
    return run_job(Example, main, ["name=x", *arguments])


def failing(error: BaseException) -> Callable[[Example], Outcome]:
    def main(config: Example) -> Outcome:
        raise error

    return main


def test_stdout_has_the_json_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config: Outcome({"name": config.name, "dice": 0.5})) == 0
    output, error = capsys.readouterr()
    assert output.count("\n") == 1
    assert json.loads(output) == {"name": "x", "dice": 0.5}
    assert error == ""


def test_what_libraries_print_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    def main(config: Example) -> Outcome:
        print("by Python")
        os.write(1, b"by C\n")
        return Outcome({})

    assert run(main) == 0
    output, error = capfd.readouterr()
    assert output == "{}\n"
    assert sorted(error.splitlines()) == ["by C", "by Python"]


def test_a_figure_that_is_none_is_null_in_the_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config: Outcome({"dice": float("nan"), "per_class": [0.5, float("inf")]})) == 0
    assert json.loads(capsys.readouterr().out) == {"dice": None, "per_class": [0.5, None]}


def test_a_gate_that_refuses_is_status_1_with_its_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config: Outcome({"promoted": False}, ok=False)) == 1
    assert json.loads(capsys.readouterr().out) == {"promoted": False}


@pytest.mark.parametrize(("kind", "status"), [(InputError, 2), (UnavailableError, 2), (HistillError, 1)])
def test_known_errors_are_one_line_without_a_traceback(
    capsys: pytest.CaptureFixture[str], kind: type[HistillError], status: int
) -> None:
    assert run(failing(kind("shard a is gone; make it again.", code="tiles-damaged"))) == status
    output, error = capsys.readouterr()
    assert output == ""
    assert error == "error: shard a is gone; make it again. [tiles-damaged]\n"


def test_an_interrupt_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(KeyboardInterrupt())) == 130
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("interrupted;")
    assert error.count("\n") == 1


class GroupError(Exception):
    """As ray.train raises when workers fail."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("2 workers failed")
        self.worker_failures = failures


def ray_error(error: Exception) -> RayTaskError:
    trace = f"Traceback (most recent call last):\n  File 'x', line 1\n{type(error).__name__}: {error}"
    return RayTaskError("task", trace, error)


def chained(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("the library says so") from cause
    except RuntimeError as outer:
        return outer


KNOWN = InputError("shard a is gone", code="tiles-damaged")


@pytest.mark.parametrize(
    "wrapped",
    [
        chained(KNOWN),
        ray_error(KNOWN),
        ray_error(KNOWN).as_instanceof_cause(),
        ray_error(chained(KNOWN)).as_instanceof_cause(),
        GroupError({0: ValueError("another"), 1: ray_error(KNOWN).as_instanceof_cause()}),
        chained(GroupError({0: KNOWN})),
    ],
    ids=["cause", "task", "task of its cause's class", "task and cause", "worker group", "cause and group"],
)
def test_a_wrapped_error_is_found(capsys: pytest.CaptureFixture[str], wrapped: Exception) -> None:
    assert run(failing(wrapped)) == 2
    assert capsys.readouterr().err == "error: shard a is gone [tiles-damaged]\n"


def test_an_unknown_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()))


def test_verbose_adds_the_traceback_and_keeps_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(chained(KNOWN)), "--verbose") == 2
    error = capsys.readouterr().err
    assert "the library says so" in error
    assert error.endswith("error: shard a is gone [tiles-damaged]\n")
    assert os.environ["HISTILL_VERBOSE"] == "1"


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("rat=2", ["'rat'", "2", "did you mean 'rate'?", "[config-unknown-key]"]),
        ("rate=-1", ["'rate' is -1", "greater than 0", "[config-wrong-value]"]),
        ("rate=fast", ["'rate' is 'fast'", "number"]),
        ("source=no", ["'source' holds false", "in quotes", "[config-unquoted]"]),
        ("source=[a]", ["'source' holds a list", "[config-wrong-value]"]),
        ("storage.atempts=2", ["did you mean 'storage.attempts'?", "[config-unknown-key]"]),
        ("rate", ["'rate' is not of the form key.sub=value", "[command-line-wrong]"]),
    ],
)
def test_a_wrong_key_or_value_is_status_2(capsys: pytest.CaptureFixture[str], argument: str, parts: list[str]) -> None:
    assert run(failing(AssertionError("the job must not start")), argument) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(part in error for part in parts), error


@pytest.mark.parametrize(
    "argument",
    [
        "source=s3://id:hunter2@bucket/key",
        "storage.endpoint=http://id:hunter2@host:9000",
        "sorce=s3://id:hunter2@bucket/key",
        "storage=http://id:hunter2@host",
        "storage.secret_key=hunter2",
        "storage.password=[hunter2",
        "aws={secret_access_key: hunter2}",
        "rate=http://id:hunter2@host",
    ],
)
def test_a_secret_is_refused_and_never_echoed(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    assert run(failing(AssertionError("the job must not start")), argument) == 2
    output, error = capsys.readouterr()
    assert "hunter2" not in output + error
    assert argument.partition("=")[0] in error


def test_the_resolved_configuration_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(AssertionError("the job must not start")), "--print-config", "rate=2") == 0
    output = capsys.readouterr().out
    assert "rate: 2.0" in output
    assert "attempts: 5" in output


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_job(Example, failing(AssertionError()), ["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for key in ("name", "rate", "storage.endpoint"):
        assert f"\n  {key} " in output
    assert "how fast (default 0.5)" in output


def test_help_names_the_keys_below_a_name_of_ones_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_job(PretrainConfig, failing(AssertionError()), ["--help"])
    output = capsys.readouterr().out
    for key in ("embeddings.<name>.responses", "embeddings.<name>.weight", "embeddings.<name>.teacher.encoder.folder"):
        assert f"\n  {key} " in output


@pytest.mark.parametrize("arguments", [["-c", "a.yaml", "-c", "b.yaml"], ["--config=a.yaml", "rate=1", "-c", "b.yaml"]])
def test_a_second_file_is_not_dropped_in_silence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_job(Example, failing(AssertionError("the job must not start")), arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "-c is given twice; keep one file" in error
    assert error.endswith(" [command-line-wrong]\n")


@pytest.mark.parametrize("argument", ["--verb", "--sourc=x", "--storag"])
def test_options_are_not_guessed_from_their_beginning(argument: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run_job(Example, failing(AssertionError("the job must not start")), ["name=x", argument])
    assert caught.value.code == 2
