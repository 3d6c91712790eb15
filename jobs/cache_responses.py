"""Write a teacher's responses to a whole tile set, once, for every later run and trial.

The cache lies in a sub-folder of `output` named by its content (teacher, tiles and views), in shards like the tiles'
own. A repeated run finds it there; an interrupted one goes on.

  python jobs/cache_responses.py -c jobs/configs/cache_responses.yaml tiles=s3://tiles/liver output=s3://tiles/responses
"""

from histill.cli import Outcome, run_job
from histill.config.scoring import CacheConfig


def main(config: CacheConfig) -> Outcome:
    """Cache the responses of `config`."""
    from histill.registry.settled import settled_teacher
    from histill.storage.control import probe
    from histill.teachers.cache import cache_responses

    probe(config.output, config.storage)
    teacher = settled_teacher(config.teacher, config.tracking, config.output, config.storage)
    cached = cache_responses(config.model_copy(update={"teacher": teacher}))
    values = {"responses": cached.uri, "reused": cached.reused, **cached.header.model_dump(mode="json")}
    return Outcome(values)


if __name__ == "__main__":
    raise SystemExit(run_job(CacheConfig, main))
