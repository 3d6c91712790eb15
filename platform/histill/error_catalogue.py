"""Explain an error's code, for `histill explain CODE`."""

from difflib import get_close_matches
from pathlib import Path

from histill.errors import InputError


def read_catalogue() -> dict[str, str]:
    """Code -> its explanation in Markdown: an example of a sentence, quoted, then what it means and what to do."""
    text = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    sections = (part.partition("\n") for group in text.split("\n## ") for part in group.split("\n### ")[1:])
    return {code: explanation.strip() for code, _, explanation in sections}


def explain(code: str) -> str:
    """The explanation of `code`, which may be in brackets, as errors show it. Raises InputError if there is none."""
    sections = read_catalogue()
    name = code.strip("[]")
    if name not in sections:
        near = get_close_matches(name, sections, 3, cutoff=0.5)
        meant = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sections)}."
        raise InputError(f"{code!r} is not an error's code; {meant}", code="command-line-wrong")
    return f"{name}\n\n{sections[name]}"
