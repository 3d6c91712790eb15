"""Cache a teacher's responses to a whole tile set, once, for all later runs and trials.

The cache is a sub-folder of `output` named by its content (teacher, tiles and views), with shards like the tile set's.
A repeated run reuses it; an interrupted one resumes.

A table shows the share of each class in each slide (each case, in a set of images), with warnings if nuclei cover less
than 0.5 % or more than 60 %, or if all tiles have one class: usually the resolution or stain is wrong. `shares.json`
beside the responses has the figures, `contours.png` shows some tiles with outlines. Embeddings have none of these.

  python jobs/cache_responses.py -c jobs/configs/cache_responses.yaml tiles=s3://tiles/liver output=s3://tiles/responses
"""

from histill.cli import Outcome, run_job
from histill.config.cache_responses import CacheConfig


def main(config: CacheConfig) -> Outcome:
    """Cache the responses of `config`."""
    import sys

    from histill.evaluate.teacher_picture import CONTOURS_NAME, draw_contours
    from histill.registry.materialize import materialize_teacher
    from histill.storage.control import exists, probe, write_bytes
    from histill.storage.uris import join
    from histill.teachers.cache import cache_responses
    from histill.tiles.manifest import read_manifest

    probe(config.output, config.storage)
    teacher = materialize_teacher(config.teacher, config.tracking, config.output, config.storage)
    cached = cache_responses(config.model_copy(update={"teacher": teacher}))
    header = cached.header.model_dump(mode="json", exclude={"mean"})  # which may have thousands of numbers
    values = {"responses": cached.uri, "reused": cached.reused, **header}
    if cached.header.outputs.kind == "encoder":  # which has no classes to count or draw
        return Outcome(values)
    picture = join(cached.uri, CONTOURS_NAME)
    if not exists(picture, config.storage):
        manifest = read_manifest(config.tiles, config.storage)
        drawn = draw_contours(cached.uri, cached.header, manifest, config.storage)
        write_bytes(picture, drawn, config.storage)
    print(cached.shares.table(), file=sys.stderr)
    for warning in cached.shares.warnings():
        print(f"warning: {warning} Look at {picture}.", file=sys.stderr)
    values |= {
        "contours": picture,
        "shares": cached.shares.values(),
        "implausible": list(cached.shares.implausible()),
    }
    return Outcome(values)


if __name__ == "__main__":
    raise SystemExit(run_job(CacheConfig, main))
