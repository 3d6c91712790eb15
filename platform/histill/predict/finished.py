"""Whether predictions are finished and all there."""

import logging

import pyarrow.compute as pc

from histill.errors import InputError
from histill.predict.draw import SLIDES_NAME
from histill.predict.record import HEADER_NAME, PredictionsHeader
from histill.predict.shard import Predicting
from histill.storage.control import exists, measure_files
from histill.storage.records import read_record
from histill.storage.uris import join
from histill.tiles.manifest import Manifest

_logger = logging.getLogger(__name__)


def find_record(how: Predicting, manifest: Manifest) -> PredictionsHeader | None:
    """The header of predictions of which nothing is missing; None when there is something to be made.

    What could not be decoded is tried again, since the tiles may have been mended.
    """
    try:
        header = read_record(PredictionsHeader, join(how.uri, HEADER_NAME), how.config.storage)
    except FileNotFoundError:
        return None
    except InputError as error:
        _logger.warning("the predictions are looked through again: %s", error)
        return None
    if count_bytes(how, manifest) != header.shard_bytes or not exists(join(how.uri, SLIDES_NAME), how.config.storage):
        _logger.warning("predictions below %s are missing or cut short and are made again", how.uri)
        return None
    return None if header.found.corrupt else header


def count_bytes(how: Predicting, manifest: Manifest) -> int | None:
    """The bytes of the predictions of all shards with a tile of the split; None when some are missing."""
    split, table = how.config.split, manifest.table
    names = (table if split is None else table.filter(pc.equal(table["split"], split)))["shard"].unique().to_pylist()
    found = measure_files(how.uri, names, how.config.storage)
    return sum(found.values()) if len(found) == len(names) else None
