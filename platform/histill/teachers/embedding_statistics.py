"""Center and scale of a teacher's cached embeddings, by which teachers of differing scale are made to weigh alike."""

import numpy as np

from histill.config.common import Storage
from histill.errors import InputError
from histill.stream.cached_views import CachedViews
from histill.stream.responses import decode_embedding
from histill.teachers.shard_responses import read_first_responses
from histill.tiles.manifest import Manifest
from histill.tiles.shards import shards_of

SAMPLE_TILES = 20_000


def measure_embeddings(cached: CachedViews, manifest: Manifest, storage: Storage) -> tuple[np.ndarray, float]:
    """Mean, float64 [D], and scale of the embeddings in shards that lie evenly in the set, up to 20,000 tiles.

    The scale is 1 / sqrt(mean over dimensions of the variance): after it the embeddings' mean variance is 1, with one
    factor for all dimensions, as in PHI-S (Ranzinger et al., arXiv 2410.01680, section 3). PHI-S's rotation is left
    out: cosine and squared distance do not change when teacher and projection are rotated together, so a learned
    projection makes it needless; smooth L1 does. Where all embeddings are alike the scale is 1. They depend on the
    cached embeddings alone. Raises InputError when no tile has an embedding.
    """
    shards = list(shards_of(manifest))
    wanted = max(1, min(len(shards), len(shards) * SAMPLE_TILES // max(1, manifest.header.tiles)))
    width = cached.outputs.width
    assert width is not None
    found: list[np.ndarray] = []
    for index in np.unique(np.linspace(0, len(shards) - 1, wanted).round().astype(int)):
        responses = read_first_responses(cached, shards[index], storage) or []
        found += [decode_embedding(response, width) for response in responses if response]
    if not found:
        raise InputError(
            f"no tile of {manifest.uri} has an embedding in {cached.uri}; ingest tiles that can be decoded.",
            code="tiles-undecodable",
        )
    sample = np.stack(found[:SAMPLE_TILES]).astype(np.float64)
    variance = float(sample.var(0).mean())
    return sample.mean(0), 1 / np.sqrt(variance) if variance > 0 else 1.0
