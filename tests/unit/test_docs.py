"""The pages of the documentation find one another, and the files that they name."""

import re
from pathlib import Path

import pytest

import histill

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
