"""Use cases around tiles: cut them, cache what a teacher answers to them, convert a teacher's weights."""

import sys
from typing import TYPE_CHECKING, Any

from histill.api.configure import Given, configure
from histill.config.cache_responses import CacheConfig
from histill.config.convert_encoder import ConvertConfig
from histill.config.ingest_tiles import IngestConfig

if TYPE_CHECKING:
    from histill.teachers.cache import CachedResponses
    from histill.teachers.encoder_folder import HubConfig
    from histill.tiles.ingest import IngestReport


def ingest_tiles(config: Given = None, /, *, local: bool = False, **keys: Any) -> "IngestReport":
    """Cut whole slides, or import a folder of images, into a tile set: Parquet shards and a manifest.

    Slides are cut on a grid at one declared resolution, leaving out background; images are listed in an index.csv.
    Splits are by case. thumbnails/ of the tile set shows which tiles were cut from each slide. The same call again
    resumes an interrupted ingest, and reuses a finished tile set.

    Args:
        config: an `IngestConfig`, a YAML file or a mapping; None: the keys alone.
        local: cut in this process, without Ray.
        **keys: keys of `IngestConfig` over `config`, such as `output`, `tile_px` and `slides={"paths": [...]}`.

    Returns:
        The tile set's manifest, and what was left out and why.

    Raises:
        InputError: the sources or the storage cannot be used, or the output holds other tiles.

    Examples:
        >>> histill.ingest_tiles(output="tiles", images={"index": "images/index.csv", "mpp": 0.5}, local=True)
    """
    from histill.storage.control import probe
    from histill.tiles import ingest

    checked = configure(IngestConfig, config, keys, local=local, source="ingest_tiles")
    probe(checked.output, checked.storage)
    return ingest.ingest(checked)


def cache_responses(config: Given = None, /, *, local: bool = False, **keys: Any) -> "CachedResponses":
    """Cache a teacher's responses to a whole tile set, once, for all later runs and trials.

    The cache is a sub-folder of `output` named by its content (teacher, tiles and views), with shards like the tile
    set's. A repeated call reuses it; an interrupted one resumes.

    A table shows the share of each class in each slide (each case, in a set of images), with warnings if nuclei cover
    less than 0.5 % or more than 60 %, or if all tiles have one class: usually the resolution or stain is wrong.
    `shares.json` beside the responses has the figures, `contours.png` shows some tiles with outlines. Embeddings have
    none of these.

    Args:
        config: a `CacheConfig`, a YAML file or a mapping; None: the keys alone.
        local: run the teacher in this process, without Ray.
        **keys: keys of `CacheConfig` over `config`, such as `tiles`, `teacher={"classical": True}` and `output`.

    Returns:
        The cache: its `uri`, which runs take as `responses`, its header and the shares of the classes.

    Raises:
        InputError: there is no such tile set, or the teacher or window cannot be used.

    Examples:
        >>> histill.cache_responses(tiles="tiles", teacher={"classical": True}, output="responses", local=True).uri
    """
    from histill.artifacts.check_places import check_teacher
    from histill.storage.control import exists, probe, write_bytes
    from histill.storage.uris import join
    from histill.tiles.manifest import read_header
    from histill.tiles.manifest_file import read_manifest

    checked = configure(CacheConfig, config, keys, local=local, source="cache_responses")
    storage = checked.storage
    probe(checked.output, storage)
    read_header(checked.tiles, storage)
    check_teacher(checked.teacher, storage)
    from histill.evaluate.teacher_picture import CONTOURS_NAME, draw_contours  # from here on torch is loaded
    from histill.registry.materialize import materialize_teacher
    from histill.teachers import cache

    teacher = materialize_teacher(checked.teacher, checked.tracking, checked.output, storage)
    cached = cache.cache_responses(checked.model_copy(update={"teacher": teacher}))
    if cached.header.outputs.kind == "encoder":  # which has no classes to count or draw
        return cached
    picture = join(cached.uri, CONTOURS_NAME)
    if not exists(picture, storage):
        drawn = draw_contours(cached.uri, cached.header, read_manifest(checked.tiles, storage), storage)
        write_bytes(picture, drawn, storage)
    for warning in cached.shares.warnings():
        print(f"warning: {warning} Look at {picture}.", file=sys.stderr)
    return cached


def convert_encoder(config: Given = None, /, **keys: Any) -> "HubConfig":
    """Write published weights of an encoder as the folder that teacher.encoder.folder takes.

    Takes timm's, DINOv2's and transformers' names of tensors, and files of torch (.bin, .pt, .pth) as far as they hold
    tensors and nothing that could run.

    Args:
        config: a `ConvertConfig`, a YAML file or a mapping; None: the keys alone.
        **keys: keys of `ConvertConfig` over `config`: `weights`, `output`, and `preset` or `architecture`.

    Returns:
        The architecture and its arguments, as config.json of the folder `output` has them.

    Raises:
        InputError: the file holds other things than tensors, or they fit no known architecture.

    Examples:
        >>> histill.convert_encoder(weights="uni/pytorch_model.bin", output="encoders/uni")
    """
    from histill.artifacts.check_places import check_weights
    from histill.storage.control import probe

    checked = configure(ConvertConfig, config, keys, source="convert_encoder")
    probe(checked.output, checked.storage)
    check_weights(checked.weights, checked.storage)
    from histill.teachers import convert_encoder as conversion  # from here on torch is loaded

    return conversion.convert_encoder(checked)
