"""Errors and their codes: each raise site names one, each is used, and it survives the way from another process."""

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

from histill.cluster.ray_errors import unwrap_error
from histill.errors import ErrorCode, HistillError, InputError, UnavailableError, format_error
from histill.tiles.sources import Unreadable

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CODES = get_args(ErrorCode)
ERRORS = {"HistillError", "InputError", "UnavailableError", "Unreadable"}
FOLDERS = ("platform/histill", "jobs", "testbed", "chaos", "benchmarks", "experiments")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            yield path, ast.parse(path.read_text())


def test_every_error_is_made_with_a_code() -> None:
    """Of a literal code mypy sees a typo too, but not in folders that it does not check."""
    made, without = 0, []
    for path, tree in trees():
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in ERRORS:
                continue
            made += 1
            code = next((word.value for word in call.keywords if word.arg == "code"), None)
            literal = code.value if isinstance(code, ast.Constant) else None
            if code is None or (isinstance(code, ast.Constant) and literal not in CODES):
                without.append(f"{path.relative_to(ROOT)}:{call.lineno} {literal}")
    assert made > 250
    assert without == []


def test_every_code_is_used() -> None:
    assert len(set(CODES)) == len(CODES)
    used = {
        node.value
        for path, tree in trees()
        if path != ROOT / "platform/histill/errors.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
    }
    assert [code for code in CODES if code not in used] == []


@pytest.mark.parametrize("kind", [HistillError, InputError, UnavailableError, Unreadable])
def test_an_error_keeps_its_code_on_the_way_from_another_process(kind: type[HistillError]) -> None:
    error = kind("the slide a.svs is empty; copy it again.", code="slide-unreadable")
    of_task = RayTaskError("task", "Traceback", error).as_instanceof_cause()
    for copy in (pickle.loads(pickle.dumps(error)), unwrap_error(pickle.loads(cloudpickle.dumps(of_task)))):  # noqa: S301
        assert (type(copy), str(copy), copy.code) == (kind, str(error), "slide-unreadable")


def test_advice_that_ray_data_appends_is_left_out_and_the_code_kept() -> None:
    error = InputError("shard a is gone", code="tiles-damaged")
    error.args = ("shard a is gone\nFailed to run after 1/1 attempts.",)
    found = unwrap_error(pickle.loads(pickle.dumps(error)))  # noqa: S301
    assert found is not None
    assert format_error(found) == "error: shard a is gone [tiles-damaged]"
