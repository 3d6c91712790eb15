"""Take the blocks of a Ray Data dataset as they are made, by the caller's own thread."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa


def iterate_blocks(dataset: Any) -> Iterator[pa.Table]:
    """Execute `dataset`, a `ray.data.Dataset` of Arrow blocks, and yield each; leaving the loop ends the execution.

    Ray 2.60's own `iter_rows` and `iter_batches` start daemon threads that outlive the loop. If one asks for a block
    while Ray is shut down, the process may end without a Python error.
    """
    import ray

    for bundle in dataset.iter_internal_ref_bundles():
        for reference in bundle.block_refs:
            yield ray.get(reference)
