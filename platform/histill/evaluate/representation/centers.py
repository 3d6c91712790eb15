"""Read the center or scanner of each tile from a table of cases or slides."""

import numpy as np

from histill.config.common import Storage
from histill.config.probe import Centers
from histill.errors import InputError
from histill.evaluate.representation.robustness_index import have_shared_classes
from histill.storage.uris import stem
from histill.tiles.index import plain, read_index


def read_centers(source: Centers, names: np.ndarray, labels: np.ndarray, storage: Storage) -> np.ndarray:
    """Look up the center of each tile, [N], by the name of its case or slide, [N].

    The table may give a slide's file instead of its name. Raises InputError if a case or slide is missing or has two
    centers, and if no two centers share two classes (`labels`, int64 [N]): class and center are confounded then.
    """
    index = read_index(source.table, storage, needed=(source.by, source.column))
    centers: dict[str, str] = {}
    for values, line in zip(index.rows, index.lines, strict=True):
        written, center = plain(values[source.by]), plain(values[source.column])
        for name in {written, stem(written)} if source.by == "slide" else {written}:
            if centers.setdefault(name, center) != center:
                raise InputError(
                    f"line {line} of {source.table} puts {source.by} {name!r} at {center!r}, and a line above at "
                    f"{centers[name]!r}; give it one, or name the slides (centers.by=slide).",
                    code="centers-unusable",
                )
    missing = [name for name in np.unique(names).tolist() if plain(name) not in centers]
    if missing:
        raise InputError(
            f"{source.table} has no {source.column} for {source.by} {missing[0]!r} ({len(missing)} are missing); add "
            "them.",
            code="centers-unusable",
        )
    found = np.array([centers[plain(name)] for name in names.tolist()])
    if not have_shared_classes(labels, found):
        raise InputError(
            f"no two of {', '.join(sorted(set(found.tolist())))} in {source.table} share two classes of the held-out "
            "tiles, so class and center cannot be told apart; leave centers out, or choose a split with more cases.",
            code="centers-unusable",
        )
    return found
