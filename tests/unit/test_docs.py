"""The pages of the documentation find one another, and the files that they name."""

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import histill
from histill.cli.verbs import VERBS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
ROOTS = (ROOT, ROOT / "platform/histill", ROOT / "platform/histill/storage", ROOT / "tests")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "extend.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_modules_that_are_named_exist(page: Path) -> None:
    """`train/loop.py` is a file of the package, or of the repository; those of extend.md are the reader's own."""
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|md))`", page.read_text()))
    assert [name for name in sorted(named) if not any((root / name).exists() for root in ROOTS)] == []


@pytest.mark.parametrize("folder", ["decisions", "results"])
def test_every_page_is_listed(folder: str) -> None:
    pages = {page.name for page in (ROOT / "docs" / folder).glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w[\w-]*\.md)\)", (ROOT / "docs" / folder / "README.md").read_text()))


def test_every_public_name_is_in_the_reference() -> None:
    shown = re.findall(r"^::: histill\.(\w+)$", (ROOT / "docs/reference/python.md").read_text(), re.MULTILINE)
    modules = {name for name in histill.__all__ if (ROOT / f"docs/reference/{name}.md").exists()}
    assert {*shown, *modules} == set(histill.__all__) - {"__version__"}


@pytest.mark.parametrize("package", ["losses", "metrics"])
def test_every_module_of_pure_functions_is_in_the_reference(package: str) -> None:
    """But those that hold no more than a run's own plumbing: which layers are compared, and the table of the terms."""
    plumbing = {"__init__", "layers", "loss"}
    shown = set(
        re.findall(
            rf"^::: histill\.{package}\.(\w+)$", (ROOT / f"docs/reference/{package}.md").read_text(), re.MULTILINE
        )
    )
    assert {path.stem for path in (ROOT / f"platform/histill/{package}").glob("*.py")} - plumbing == shown


def without_code(markdown: str) -> str:
    return re.sub(r"^ *```.*?^ *```|`[^`]*`|^ *>>> .*$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def test_no_placeholder_is_taken_for_a_tag() -> None:
    """Neither in a public docstring nor on a page: a browser swallows <name>."""
    named = [getattr(histill, name) for name in histill.__all__ if name != "__version__"]
    methods = [each for one in named for _, each in inspect.getmembers(one, inspect.isfunction) if inspect.isclass(one)]
    texts = {
        each.__qualname__: inspect.getdoc(each) or "" for each in [*named, *methods] if hasattr(each, "__qualname__")
    }
    texts |= {page.name: page.read_text() for page in PAGES}
    tag = re.compile(r"<(?!/?(?:div|details|summary|sub|sup|br|img|svg|b|i)\b|!--|https?:)/?[a-z]\w*[^<\n]*>")
    assert len(texts) > 40
    assert {name: found[0] for name, text in texts.items() if (found := tag.search(without_code(text)))} == {}


def hook_of(name: str) -> dict[str, Any]:
    pytest.importorskip("mkdocs")
    return runpy.run_path(str(ROOT / "docs/hooks" / name))


def test_the_pages_of_verbs_show_placeholders() -> None:
    hook = hook_of("command_line.py")
    assert hook["escape_tags"]("to <runs>/<name>, as `<name>` is") == "to &lt;runs>/&lt;name>, as `<name>` is"
    strange = hook_of("pages.py")["find_strange_tags"]
    assert strange("<p>to <runs>/<name></p>") == ["name", "runs"]
    pages = {verb.name: hook["_page_of"](verb, ROOT / "jobs/configs") for verb in VERBS}
    assert {name: found for name, page in pages.items() if (found := strange(without_code(page)))} == {}
