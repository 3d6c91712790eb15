"""The README's commands are what the jobs understand."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    """The words after `python` or `submit` of each command for a job, with the variables that the README sets."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    variables: dict[str, str] = {}
    found = []
    for line in lines:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        if words[:1] in (["python"], ["submit"]) and words[1].startswith("jobs/"):
            found.append(words[1:])
        elif words and all(re.match(r"[A-Z]+=", word) for word in words):
            variables |= dict(word.split("=", 1) for word in words)
    return found


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[:3]))
def test_a_command_is_understood(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not [word for word in command if "$" in word]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*command, "--print-config"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[0], run_name="__main__")
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert isinstance(yaml.safe_load(printed.out), dict)


def test_every_job_is_in_the_table_and_no_other() -> None:
    named = set(re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in (ROOT / "jobs").glob("*.py")}


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"^  make ([\w-]+) +\S", printed.stdout, re.MULTILINE)) == set(targets[1].split())
