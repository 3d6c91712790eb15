"""The actor that holds a teacher and writes its responses, one shard of tiles at a time."""

from dataclasses import asdict
from typing import Any

import numpy as np

from histill.cluster.sharded import check_unchanged
from histill.stream.read import ShardReader
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.teachers.shares import tally_responses
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest_file import read_manifest
from histill.tiles.shards import shards_of


class ResponseWorker:
    """An actor that holds the teacher and writes its responses shard by shard."""

    def __init__(self, job: ResponseJob, tiles_digest: str, teacher_digest: str) -> None:
        config = job.config
        self._job, self._read = job, ShardReader()
        self._manifest = read_manifest(config.tiles, config.storage)
        check_unchanged(config.tiles, tiles_digest, self._manifest.header.digest)
        gpu = config.workers.gpus > 0
        self._teacher = load_teacher(config.teacher, self._manifest.header.mpp, config.storage, gpu=gpu)
        check_unchanged(f"teacher {config.teacher.value}", teacher_digest, self._teacher.digest)
        self._shards = {shard.shard: shard for shard in shards_of(self._manifest)}

    def __call__(self, name: str) -> list[dict[str, Any]]:
        """Write the responses to one shard and return the tallies of its slides as plain values."""
        shard, job = self._shards[name], self._job
        responses = write_shard_responses(self._teacher, self._manifest, shard, job, self._read)
        side = job.cached.augment.crop_px or self._manifest.header.tile_px
        rows = np.arange(shard.first, shard.first + shard.tiles)
        return [asdict(tally) for tally in tally_responses(responses, self._teacher, self._manifest, rows, side)]
