"""Splits: by case, reproducible, pinned where requested."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.config.ingest_tiles import SplitRule
from histill.errors import InputError
from histill.tiles.splits import assign_split, check_pinned

pytestmark = pytest.mark.unit

fractions = st.tuples(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10)).filter(any)


@given(st.text(), st.integers(), fractions)
def test_a_split_without_a_fraction_gets_no_case(case: str, seed: int, parts: tuple[int, int, int]) -> None:
    total = sum(parts)
    train, val, test = (part / total for part in parts)
    rule = SplitRule(train=train, val=val, test=test, seed=seed)
    split = assign_split(case, rule)
    assert getattr(rule, split) > 0
    assert split == assign_split(case, rule)


@given(st.text(min_size=1), st.sampled_from(["train", "val", "test"]), st.integers())
def test_pinned_cases_stay_where_they_are_pinned(case: str, split: str, seed: int) -> None:
    assert assign_split(case, SplitRule(seed=seed, pinned={split: (case,)})) == split


def test_fractions_hold_on_average() -> None:
    rule = SplitRule(train=0.6, val=0.3, test=0.1)
    splits = [assign_split(f"case {number}", rule) for number in range(10_000)]
    for name in ("train", "val", "test"):
        # Four standard deviations of a binomial are 0.02 at most.
        assert splits.count(name) / 10_000 == pytest.approx(getattr(rule, name), abs=0.02)


def test_the_same_in_another_process_and_for_another_seed_different() -> None:
    cases = [f"case {number}" for number in range(50)]
    code = (
        "from histill.config.ingest_tiles import SplitRule\nfrom histill.tiles.splits import assign_split\n"
        "print(''.join(assign_split(f'case {number}', SplitRule())[1] for number in range(50)))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == "".join(assign_split(case, SplitRule())[1] for case in cases)
    assert there != "".join(assign_split(case, SplitRule(seed=1))[1] for case in cases)


def test_known_answers() -> None:
    # A change here would move cases between the splits of every tile set that is cut again.
    assert [assign_split(case, SplitRule(train=0.4, val=0.3, test=0.3)) for case in "abcdef"] == [
        "test",
        "train",
        "train",
        "test",
        "train",
        "train",
    ]


def test_a_pinned_case_that_does_not_occur() -> None:
    rule = SplitRule(pinned={"test": ("human livr",)})
    with pytest.raises(InputError, match=r"split\.pinned\.test names the case 'human livr'.*'human liver'"):
        check_pinned(rule, ["human liver", "mouse fat"])
    check_pinned(rule, ["human livr"])
