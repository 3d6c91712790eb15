"""The jobs that are killed: their commands, and what they leave behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kill_runs.objects import files_below, objects_below, open_uploads
from kill_runs.place import CASES, MPP, TILE_PX, TRAIN_CASES, VAL_CASES, Place, python
from kill_runs.result import Result, settled

SHARED = "reference-ingest_local"  # the chain whose tile set the other jobs read


@dataclass(frozen=True)
class Job:
    """A job: its commands in their order, each killed and given again before the next; and what it has written."""

    commands: Callable[[Place, str], list[list[str]]]
    result: Callable[[Place, str], Result]
    share: float  # of all kills
    own_ray: float = 0.0  # share of chains that run on a Ray of their own
    stable: bool = True  # whether each object, once it is there, stays as it is


def out(place: Place, chain: str) -> str:
    """The folder of a job that writes to this machine's disk."""
    return str(place.folder / "out" / chain)


def bucket(place: Place, chain: str) -> str:
    """The folder of a job that writes to the bucket."""
    return f"s3://{place.s3.bucket}/out/{chain}"


def tiles(place: Place) -> str:
    """The tile set that all others read."""
    return out(place, SHARED)


def _pinned() -> str:
    names = [f"case-{number:02d}" for number in range(CASES)]
    held, rest = names[:TRAIN_CASES], names[TRAIN_CASES:]
    return f"split.pinned={{train: {held}, val: {rest[:VAL_CASES]}, test: {rest[VAL_CASES:]}}}".replace("'", "")


def ingest_images(place: Place, chain: str) -> list[list[str]]:
    """Images on this machine, to this machine."""
    keys = [f"images.index={place.index}", f"images.mpp={MPP}", f"tile_px={TILE_PX}", _pinned()]
    return [python("ingest_tiles.py", *keys, f"output={out(place, chain)}", "rows_per_shard=6", "rows_per_group=3")]


def ingest_slides(place: Place, chain: str) -> list[list[str]]:
    """Slides in the bucket, to the bucket."""
    keys = [f"slides.paths=[{', '.join(place.slides)}]", f"slides.mpp={MPP}", f"tile_px={TILE_PX}", "rows_per_shard=8"]
    keys += ["rows_per_group=4", f"storage.endpoint={place.s3_endpoint}", f"output={bucket(place, chain)}"]
    return [python("ingest_tiles.py", *keys)]


def cache(place: Place, chain: str) -> list[list[str]]:
    """Responses to the tile set, to the bucket."""
    keys = [f"tiles={tiles(place)}", "teacher.classical=true", f"output={bucket(place, chain)}", "workers.count=1"]
    return [python("cache_responses.py", *keys, "workers.cpus=0.5", f"storage.endpoint={place.s3_endpoint}")]


def local_files(place: Place, chain: str) -> Result:
    """What lies on this machine's disk."""
    found = files_below(place.folder / "out" / chain)
    return Result({name: settled(name, data, chain) for name, data in found.items()})


def bucket_objects(place: Place, chain: str) -> Result:
    """What lies in the bucket."""
    prefix = f"out/{chain}"
    found = {name: settled(name, data, chain) for name, data in objects_below(place.s3, prefix).items()}
    return Result(found, unfinished=tuple(f"upload left open: {key}" for key in open_uploads(place.s3, prefix)))


JOBS: Mapping[str, Job] = {
    "ingest_local": Job(ingest_images, local_files, share=0.22, own_ray=0.1),
    "ingest_s3": Job(ingest_slides, bucket_objects, share=0.2),
    "cache": Job(cache, bucket_objects, share=0.15),
}
