"""The commands of the README and the pages are what the jobs and verbs understand, and what is listed is complete."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from histill.cli.main import main
from histill.cli.verbs import VERBS, find_verb

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The words of each command for a job or verb, with the variables that the page sets."""
    blocks = re.findall(r"^ *```(?:bash)?\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n *", "", "".join(blocks)).splitlines()
    variables: dict[str, str] = {}
    found = []
    for line in lines:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        if not re.match(r" *(histill|python jobs/|submit jobs/|[A-Z]+=)", line):
            continue
        words = shlex.split(line, comments=True)
        if words[:1] == ["histill"]:
            found.append(words)
        elif words[0] in ("python", "submit"):
            found.append(words[1:])
        elif all(re.match(r"[A-Z]+=", word) for word in words):
            variables |= dict(word.split("=", 1) for word in words)
    return found


COMMANDS = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words[:3])}")
    for page in PAGES
    for words in commands(page)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not [word for word in command if "$" in word]
    monkeypatch.chdir(ROOT)
    if command[0] == "histill" and find_verb(name=command[1]) is None:
        assert main(["--help"]) == 0
        assert f"\n  {command[1]} " in capsys.readouterr().out
        return
    if command[0] == "histill":
        status = main([*command[1:], "--print-config"])
    else:
        monkeypatch.setattr(sys, "argv", [*command, "--print-config"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(command[0], run_name="__main__")
        status = ended.value.code
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert isinstance(yaml.safe_load(printed.out), dict)


def test_every_verb_is_shown_somewhere() -> None:
    shown = {words[1] for page in PAGES for words in commands(page) if words[0] == "histill"}
    assert {verb.name for verb in VERBS} - shown == set()


def test_every_job_is_in_the_table_and_no_other() -> None:
    named = set(re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "docs/reference/command-line.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in (ROOT / "jobs").glob("*.py")}


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"^  make ([\w-]+) +\S", printed.stdout, re.MULTILINE)) == set(targets[1].split())
