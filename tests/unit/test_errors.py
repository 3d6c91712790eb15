"""Errors and their codes: each raise site names one, each is explained, and it survives the way between processes."""

import ast
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

from histill.cluster.ray_errors import unwrap_error
from histill.config.load import load_config
from histill.config.pretrain_student import PretrainConfig
from histill.error_catalogue import explain, read_catalogue
from histill.errors import ErrorCode, HistillError, InputError, UnavailableError, format_error
from histill.tiles.sources import Unreadable

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
CODES = get_args(ErrorCode)
ERRORS = {"HistillError", "InputError", "UnavailableError", "Unreadable"}
CATALOGUE = ROOT / "platform" / "histill" / "error_catalogue.md"
SHOWN: dict[ErrorCode, dict[str, str | None]] = {  # what makes the example of these; the others are in the source
    "config-unknown-key": {"optimizer.lrr": "1"},
    "config-missing-key": {"data.tiles": None},
    "config-wrong-value": {"data.batch_size": "many"},
    "config-unquoted": {"name": "no"},
    "config-conflict": {"validation.patience": "3"},
}
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


def test_every_code_is_explained_and_nothing_else() -> None:
    sections = read_catalogue()
    assert list(sections) == list(CODES)  # in the same order
    headings = re.findall(r"^### (.*)$", CATALOGUE.read_text(), re.MULTILINE)
    assert headings == list(CODES)


def templates() -> dict[str, list[re.Pattern[str]]]:
    """Code -> the sentences that are made with it, as patterns."""
    found = defaultdict[str, list[re.Pattern[str]]](list)
    for call in (node for _, tree in trees() for node in ast.walk(tree)):
        for word in call.keywords if isinstance(call, ast.Call) and call.args else ():
            said = call.args[0]
            if word.arg == "code" and isinstance(said, ast.Constant | ast.JoinedStr):
                parts = said.values if isinstance(said, ast.JoinedStr) else [said]
                texts = (re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in parts)
                pattern = re.compile("".join(texts))
                for code in (each.value for each in ast.walk(word.value) if isinstance(each, ast.Constant)):
                    found[str(code)].append(pattern)
    return found


def test_every_example_is_a_sentence_of_its_code() -> None:
    known, stale = templates(), []
    for code, explanation in read_catalogue().items():
        example, _, text = explanation.partition("\n\n")
        assert example.startswith("> "), code
        assert 100 < len(text) < 700, code
        assert max(map(len, text.splitlines())) <= 120, code
        if code not in SHOWN and not any(each.fullmatch(example[2:]) for each in known[code]):
            stale.append(code)
    assert stale == []


@pytest.mark.parametrize("code", SHOWN)
def test_the_example_of_a_wrong_configuration_is_what_is_said(code: ErrorCode) -> None:
    keys = {"name": "a", "runs": "runs", "data.tiles": "tiles", "teacher.classical": "true"} | SHOWN[code]
    overrides = [f"{key}={value}" for key, value in keys.items() if value is not None]
    with pytest.raises(InputError) as caught:
        load_config(PretrainConfig, None, overrides)
    assert caught.value.code == code
    assert explain(code).splitlines()[2] == f"> {caught.value}"


@pytest.mark.parametrize("code", ["mpp-missing", "[mpp-missing]"])
def test_a_code_is_explained(code: str) -> None:
    lines = explain(code).splitlines()
    assert lines[0] == "mpp-missing"
    assert any("slides.slide_mpp=0.25" in line for line in lines)
    assert not any(line.startswith("#") for line in lines)


def test_a_wrong_code_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean mpp-missing") as caught:
        explain("mpp-mising")
    assert caught.value.code == "command-line-wrong"
