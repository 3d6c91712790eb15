"""What is written to a version of how it was judged."""

import pytest
from tabulate import tabulate

from histill.registry.decision import _LONGEST_DESCRIPTION, _shorten

pytestmark = pytest.mark.unit


def test_a_description_that_is_too_long_ends_with_a_whole_row_and_says_where_the_rest_is() -> None:
    table = tabulate([(f"gate {number}", "at least 0.5", 0.75) for number in range(400)], tablefmt="github")
    text = f"The model.\n\nJudged on 8 tiles:\n\n{table}"
    shown = _shorten(text)
    assert _LONGEST_DESCRIPTION - 100 < len(shown) <= _LONGEST_DESCRIPTION
    kept, _, last = shown.rpartition("\n\n")
    assert last == "The rest is in `decision.json`, a file of the version's run."
    assert text.startswith(kept + "\n")
    assert kept.endswith("|")


def test_another_is_left_as_it_is() -> None:
    for text in ("The model.", "x" * _LONGEST_DESCRIPTION):
        assert _shorten(text) == text
