"""Keep memory that Arrow frees for the next row group, in place of returning it to the system."""

import functools
import os

import pyarrow as pa

_KEPT_MS = 60_000


@functools.cache
def keep_freed_memory() -> None:
    """Make Arrow's allocator of this process reuse what it frees; unused memory is returned after a minute.

    Row groups come and go by megabytes. Arrow's default allocator, mimalloc, returns them to the system at once, and
    faulting in their pages anew costs a tenth of decoding the tiles; the time that it keeps them can be set only before
    it is loaded, that of jemalloc at any time. Leaves an allocator alone that the user has chosen
    (ARROW_DEFAULT_MEMORY_POOL, or the time of MIMALLOC_PURGE_DELAY), or that the program has set.
    """
    chosen = {"ARROW_DEFAULT_MEMORY_POOL", "MIMALLOC_PURGE_DELAY"} & os.environ.keys()
    if chosen or pa.default_memory_pool().backend_name != "mimalloc":
        return
    if "jemalloc" in pa.supported_memory_backends():
        pa.jemalloc_set_decay_ms(_KEPT_MS)
        pa.set_memory_pool(pa.jemalloc_memory_pool())
