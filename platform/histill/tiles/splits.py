"""Assign cases to splits; anything finer than a case would leak test tiles into training."""

import difflib
import hashlib
from collections.abc import Iterable
from unicodedata import normalize

from histill.config.common import Split
from histill.config.ingest_tiles import SplitRule
from histill.errors import InputError


def assign_split(case: str, rule: SplitRule) -> Split:
    """The split of `case`: the one it is pinned to, else one chosen by a hash of the seed and its name.

    It does not depend on the other cases, so cases that are added later move none of those already assigned. For the
    same reason the fractions hold only on average; it is better to pin the cases if there are only a handful.
    """
    name = normalize("NFC", case)
    for split, cases in rule.pinned.items():
        if name in cases:
            return split
    position = _position(case, rule.seed)
    if position < rule.train:
        return "train"
    # Rounding in the sum must not open a split whose fraction is 0.
    if rule.test == 0 or position < rule.train + rule.val:
        return "val" if rule.val > 0 else "train"
    return "test"


def check_pinned(rule: SplitRule, cases: Iterable[str]) -> None:
    """Raise InputError when a pinned case does not occur among `cases`."""
    present = {normalize("NFC", case) for case in cases}
    for split, pinned in rule.pinned.items():
        for case in pinned:
            if case not in present:
                names = sorted(present)
                near = difflib.get_close_matches(case, names, n=3, cutoff=0.4) or names[:3]
                raise InputError(
                    f"split.pinned.{split} names the case {case!r}, which does not occur; "
                    f"the nearest are {', '.join(map(repr, near))}.",
                    code="config-wrong-value",
                )


def _position(case: str, seed: int) -> float:
    """Uniform in [0, 1), the same in every process and version of Python."""
    digest = hashlib.blake2b(f"{seed}:{case}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53  # 53 bits: more would round up to 1
