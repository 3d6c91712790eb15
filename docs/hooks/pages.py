"""Show pages that lie elsewhere in the repository, point links at them, and fill in the navigation's `*`."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = {  # file of the repository: its page
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "deploy/policies/README.md": "how-to/policies.md",
}
TAGS = frozenset(
    """
    a abbr article autoref b blockquote
    br button code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img
    input kbd label li ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr ul
    circle defs g line marker path polygon polyline rect style svg text title tspan
    """.split()  # noqa: SIM905
)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=_point_links((root / source).read_text(), source, page)))
    pages = [file.src_uri for file in files.documentation_pages()]
    config.nav = _fill_in(config.nav, pages, named=set(_named(config.nav)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    return markdown if here in OUTSIDE.values() else _point_links(markdown, f"docs/{here}", here)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Fail on a tag that HTML does not have, such as a placeholder <name>, which a browser swallows."""
    if strange := find_strange_tags(html):
        raise PluginError(f"{page.file.src_uri} has the tags {', '.join(strange)}; put placeholders in `code`.")
    return html


def find_strange_tags(html: str) -> list[str]:
    """The tags in `html` that are none of HTML's or of a picture's, ascending."""
    return sorted({name.lower() for name in re.findall(r"<([A-Za-z][\w-]*)", html)} - TAGS)


def _point_links(markdown: str, source: str, page: str) -> str:
    """The text of the repository's file `source`, whose links lead from `page` to pages."""

    def point(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        shown = OUTSIDE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        shown = re.sub(r"\.ipynb$", ".md", shown) if shown else None  # a notebook's page
        return found[1] if shown is None else posixpath.relpath(shown, posixpath.dirname(page) or ".")

    return LINK.sub(point, markdown)


def _named(nav: Any) -> list[str]:
    """The pages that the navigation names."""
    match nav:
        case str():
            return [nav]
        case dict():
            return [page for part in nav.values() for page in _named(part)]
        case list():
            return [page for part in nav for page in _named(part)]
    return []


def _fill_in(nav: Any, pages: list[str], named: set[str]) -> Any:
    """`nav` with the pages of each `folder/*` in its place."""
    match nav:
        case dict():
            return {title: _fill_in(part, pages, named) for title, part in nav.items()}
        case list():
            return [each for part in nav for each in _expand(part, pages, named)]
    return nav


def _expand(part: Any, pages: list[str], named: set[str]) -> list[Any]:
    if isinstance(part, str) and part.endswith("*"):
        here = re.compile(re.escape(part[:-1]) + r"[^/]*")
        found = sorted(page for page in pages if here.fullmatch(page) and page not in named)
        named.update(found)
        return found
    return [_fill_in(part, pages, named)]
