"""The layout that the rest relies on."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def test_platform_holds_only_the_package() -> None:
    # Anything else there would shadow the standard library's `platform`, and with it break Ray and pytest.
    on_disk = {path.name for path in (ROOT / "platform").iterdir()} - {"__pycache__"}
    assert on_disk == {"histill"}


def test_git_tracks_only_the_package_in_platform() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "platform"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [path for path in listed if not path.startswith("platform/histill/")] == []


def test_every_test_belongs_to_the_suite_of_its_folder() -> None:
    of_another = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if not re.search(rf"^pytestmark = \[?pytest\.mark\.{suite_of(path)}\b", path.read_text(), re.MULTILINE)
    ]
    assert of_another == []


def suite_of(path: Path) -> str:
    return path.relative_to(ROOT / "tests").parts[0]


def test_unit_tests_mirror_the_packages() -> None:
    """tests/unit/<package>/test_<module>.py, with an aspect behind where one module has several files."""
    astray = []
    for path in (ROOT / "tests" / "unit").glob("*/test_*.py"):
        package = ROOT / "platform" / "histill" / path.parent.name
        package = package if package.exists() else ROOT / path.parent.name
        names = [
            package.name,
            *(module.stem for module in package.rglob("*.py")),
            *(each.name for each in package.iterdir()),
        ]
        if not any(path.stem == f"test_{name}" or path.stem.startswith(f"test_{name}_") for name in names):
            astray.append(str(path.relative_to(ROOT)))
    assert astray == []


def test_every_test_that_the_guarantees_name_is_there() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    files = re.findall(r"`((?:unit(?:/\w+)?|behaviour|ray_local|cluster|chaos)/test_\w+\.py)", text)
    assert len(files) > 30
    assert [name for name in files if not (ROOT / "tests" / name).exists()] == []
    suites = {path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"::(test_\w+)`", text)
    assert [name for name in named if not any(f"def {name}(" in suite for suite in suites)] == []


@pytest.mark.parametrize("folder", ["platform", "jobs"])
def test_the_folder_is_no_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    assert not (ROOT / folder / "conftest.py").exists()


@pytest.mark.parametrize("on_path", [[], ["PYTHONPATH"]])
def test_the_standard_librarys_platform_wins(on_path: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **{name: str(ROOT) for name in on_path}},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_no_job_is_named_like_an_installed_module() -> None:
    # The folder of a script comes first on sys.path, so that such a job would shadow the module for itself.
    shadowing = [path.name for path in (ROOT / "jobs").glob("*.py") if importlib.util.find_spec(path.stem) is not None]
    assert shadowing == []


def test_the_testbed_needs_none_of_its_users() -> None:
    users = re.compile(r"^\s*(?:from|import) (?:benchmarks|experiments|chaos|tests)\b", re.MULTILINE)
    assert [path.name for path in (ROOT / "testbed").glob("*.py") if users.search(path.read_text())] == []


def test_the_layers_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def sentences(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """What exceptions of these names are made with, {} for what is filled in."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names and call.args:
            parts = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


COMPOSED = {  # what is filled in last is a sentence of its own
    "{}: {}",
    "{} {}.",
    "{} ({}).",
    "{} cannot be used: {}.",
    "config {} {}.",
    "the value of override {}{}.",
    "space.{}: {}",
    "line {} of the index: {}",
    "slide {} {}",
    "the sources gave no tile for {}: {}",
    "the tracking server {} {}{}.",
}


def test_nothing_that_is_said_names_a_file_that_a_wheel_lacks() -> None:
    """Messages, descriptions and docstrings name commands; jobs/ is of the repository alone."""
    jobs = "|".join(path.stem for path in (ROOT / "jobs").glob("*.py"))
    lacking = re.compile(rf"jobs/\w+\.py|\b({jobs})\.py")
    package = ROOT / "platform" / "histill"
    texts = {path: path.read_text() for pattern in ("*.py", "*.md", "*.html") for path in package.rglob(pattern)}
    assert [(path.name, found[0]) for path, text in texts.items() if (found := lacking.search(text))] == []


def test_every_sentence_about_an_input_has_a_next_step() -> None:
    """After a semicolon; or it is one ("set ...")."""
    found = []
    for path in (ROOT / "platform" / "histill").rglob("*.py"):
        names = {"InputError", "UnavailableError", "Unreadable"} | (
            {"ValueError"} if path.parent.name == "config" else set()
        )
        found += [(path.name, said) for said in sentences(ast.parse(path.read_text()), names) if said != "{}"]
    assert len(found) > 100
    without = [(name, said) for name, said in found if ";" not in said and not said.startswith("set ")]
    assert [each for each in without if each[1] not in COMPOSED] == []
