"""A manifest as one table: for notebooks and tests alone, since it takes 250 bytes for each tile."""

import numpy as np
import pyarrow as pa

from histill.tiles.manifest import Manifest
from histill.tiles.schema import MANIFEST


def read_table(manifest: Manifest) -> pa.Table:
    """All rows and columns."""
    return manifest.read([*MANIFEST.names, *manifest.rows.kept], np.arange(len(manifest.rows)))
