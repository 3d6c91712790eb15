"""The jobs that are killed: their commands and results."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chaos.kill_runs.models import student
from chaos.kill_runs.objects import files_below, objects_below, open_uploads
from chaos.kill_runs.place import CASES, MPP, TILE_PX, TRAIN_CASES, VAL_CASES, Place, python
from chaos.kill_runs.records import registered, running, tracked
from chaos.kill_runs.result import Result, plain, settled

SHARED = "reference-ingest_local"  # the chain whose tile set the other jobs read

RAYS = (
    ".validate_storage_marker",
    "checkpoint_manager_snapshot",
    "experiment_state",
    "searcher-state",
    "search_gen_state",
    "tuner.pkl",
)
"""Prefixes of the names of Ray's own files."""


@dataclass(frozen=True)
class Job:
    """A job: its commands in order, each killed and run again before the next, and its results."""

    commands: Callable[[Place, str], list[list[str]]]
    result: Callable[[Place, str], Result]
    share: float  # of all kills
    own_ray: float = 0.0  # share of chains that run on a Ray of their own
    stable: bool = True  # whether objects never change once written


def out(place: Place, chain: str) -> str:
    """The folder of a job that writes to this machine's disk."""
    return str(place.folder / "out" / chain)


def bucket(place: Place, chain: str) -> str:
    """The folder of a job that writes to the bucket."""
    return f"s3://{place.s3.bucket}/out/{chain}"


def tiles(place: Place) -> str:
    """The tile set that all other jobs read."""
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


def predict(place: Place, chain: str) -> list[list[str]]:
    """Slides in the bucket, to this machine."""
    keys = [f"model={student(place, tiles(place), 0)}", f"slides=[{', '.join(place.slides[:4])}]", "masks=true"]
    keys += [f"output={out(place, chain)}", "workers.count=1", "workers.cpus=0.5"]
    return [python("predict_tiles.py", *keys, f"storage.endpoint={place.s3_endpoint}")]


def promote(place: Place, chain: str) -> list[list[str]]:
    """Promote a first champion, and then a second candidate that costs a quarter."""
    keys = [f"registered_name={chain}", f"held_out.tiles={tiles(place)}", "gates.floors={dice: 0.0}"]
    keys += [
        "gates.bootstrap_samples=100",
        f"tracking.uri={place.tracking_uri}",
        f"tracking.experiment={chain}",
        "picture_rows=1",
    ]
    return [python("promote_model.py", f"model={student(place, tiles(place), seed)}", *keys) for seed in (0, 1)]


def _training(place: Place, chain: str) -> list[str]:
    keys = [f"name={chain}", f"data.tiles={tiles(place)}", "data.batch_size=4", "data.decode_threads=1"]
    keys += ["student.encoder=csat_tiny", "student.decoder_channels=[16, 16, 8, 8, 8]", "teacher.classical=true"]
    keys += ["workers.count=1", f"tracking.uri={place.tracking_uri}", f"tracking.experiment={chain}"]
    return [*keys, f"storage.endpoint={place.s3_endpoint}", "checkpoint_every=2"]


def train(place: Place, chain: str) -> list[list[str]]:
    """A pretraining of three epochs of six steps, to the bucket."""
    keys = [*_training(place, chain), "optimizer.epochs=3", f"runs={bucket(place, chain)}", "workers.cpus=0.5"]
    return [python("pretrain_student.py", *keys)]


def sweep(place: Place, chain: str) -> list[list[str]]:
    """Two concurrent trials of two epochs, on this machine's disk."""
    keys = [*_training(place, chain), "optimizer.epochs=2", f"runs={out(place, chain)}", "workers.cpus=0.4"]
    keys += [
        "trials=2",
        "concurrent=2",
        "scheduler=none",
        "sampler=random",
        "space={loss.soft_cross_entropy.temperature: {choice: [1, 2]}}",
    ]
    return [python("search_students.py", *keys)]


def of_training(place: Place, chain: str) -> Result:
    """The run's folder in the bucket, and its record."""
    objects, found = bucket_objects(place, chain), tracked(place.tracking.uri, chain)
    return Result(_kept(objects.objects), found, objects.unfinished + running(place.tracking.uri, chain))


def of_sweep(place: Place, chain: str) -> Result:
    """The sweep's folder on this machine, without Tune's state, and the records of sweep and trials."""
    objects = {name: data for name, data in _kept(local_files(place, chain).objects).items() if "/tune/" not in name}
    found = tracked(place.tracking.uri, chain)
    return Result(name_trials(objects), found, running(place.tracking.uri, chain))


def name_trials(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """Rename trials from random ids to their drawn values; a second one with the same values gets another name."""
    names: dict[str, str] = {}
    for name, data in objects.items():
        if (found := re.fullmatch(r"CHAIN/trials/(\w+)/run\.json", name)) is not None:
            drawn = f"trial-{json.loads(data)['config']['loss']['soft_cross_entropy']['temperature']:g}"
            names[found[1]] = drawn + "-again" * list(names.values()).count(drawn)
    renamed = {}
    for name, data in objects.items():
        for trial, drawn in names.items():
            name = name.replace(trial, drawn)
            data = data.replace(trial.encode(), drawn.encode()) if name.endswith(".json") else data
        renamed[name] = data
    return renamed


def of_promotion(place: Place, chain: str) -> Result:
    """Versions, aliases and decisions, and the runs behind them."""
    found = registered(place.tracking.uri, chain) | tracked(place.tracking.uri, chain)
    return Result({}, found, running(place.tracking.uri, chain))


def _kept(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """`objects` without Ray's own files."""
    return {name: data for name, data in objects.items() if not name.rpartition("/")[2].startswith(RAYS)}


def local_files(place: Place, chain: str) -> Result:
    """The results on this machine's disk."""
    found = files_below(place.folder / "out" / chain)
    return Result({plain(name, chain): settled(name, data, chain) for name, data in found.items()})


def bucket_objects(place: Place, chain: str) -> Result:
    """The results in the bucket."""
    prefix = f"out/{chain}"
    found = {plain(name, chain): settled(name, data, chain) for name, data in objects_below(place.s3, prefix).items()}
    return Result(found, unfinished=tuple(f"upload left open: {key}" for key in open_uploads(place.s3, prefix)))


JOBS: Mapping[str, Job] = {
    "ingest_local": Job(ingest_images, local_files, share=0.22, own_ray=0.1),
    "ingest_s3": Job(ingest_slides, bucket_objects, share=0.2),
    "cache": Job(cache, bucket_objects, share=0.15),
    "train": Job(train, of_training, share=0.11, own_ray=0.1, stable=False),
    "sweep": Job(sweep, of_sweep, share=0.05, stable=False),
    "promotion": Job(promote, of_promotion, share=0.12),
    "predict": Job(predict, local_files, share=0.15),
}
