"""The response cache, written to S3 by a pool of actors."""

from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from pyarrow import fs

from histill.artifacts.model_folder import ModelCard, build, save
from histill.cluster.ray_errors import unwrap_error
from histill.config.augment import Augment
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage, Workers
from histill.config.common import Teacher as TeacherConfig
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.local.s3 import S3Server
from histill.storage.control import exists
from histill.storage.filesystems import arrow_filesystem
from histill.storage.uris import join
from histill.stream.read import TileSource
from histill.stream.responses import STEP, levels_to_logits, response_columns
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.responses import Responses
from histill.tasks.training_task import TrainingTask
from histill.teachers.cache import HEADER_NAME, CachedResponses, address, cache_responses, check_cache, read_header
from histill.teachers.classical import ClassicalTeacher
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import Manifest
from histill.tiles.whole_table import read_table
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.ray_local

STORAGE = Storage()
CLASSICAL = TeacherConfig(classical=True)


def caching(tiles: Manifest, s3: S3Server, **changes: Any) -> CacheConfig:
    values = {"teacher": CLASSICAL, "output": f"s3://{s3.bucket}/ray-local/responses", "batch_size": 4}
    values["workers"] = Workers(count=1, cpus=0.5)
    return CacheConfig.model_validate({"tiles": tiles.uri, **values, **changes})


def shards(uri: str) -> dict[str, fs.FileInfo]:
    filesystem, path = arrow_filesystem(uri, STORAGE)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return {info.path.removeprefix(path + "/"): info for info in found if info.path.endswith(".parquet")}


def groups_of(uri: str, column: str) -> list[list[Any]]:
    filesystem, path = arrow_filesystem(uri, STORAGE)
    with filesystem.open_input_file(path) as file:
        parquet = pq.ParquetFile(file)
        return [parquet.read_row_group(i, [column])[column].to_pylist() for i in range(parquet.num_row_groups)]


@pytest.fixture(scope="module")
def scraped_cache(tiles: Manifest, s3: S3Server, scrape: Callable[[], Any]) -> tuple[CachedResponses, Any]:
    """The cache, and what was scraped meanwhile."""
    with scrape() as scraped:
        return cache_responses(caching(tiles, s3)), scraped


@pytest.fixture(scope="module")
def cached(scraped_cache: tuple[CachedResponses, Any]) -> CachedResponses:
    return scraped_cache[0]


def test_the_shards_mirror_those_of_the_tiles(tiles: Manifest, cached: CachedResponses) -> None:
    header = cached.header
    assert not cached.reused
    assert (header.tiles, header.undecodable) == (24, 0)
    assert header.classes == ("background", "nucleus")
    assert header.tiles_digest == tiles.header.digest
    assert shards(cached.uri).keys() == set(read_table(tiles)["shard"].to_pylist())
    for shard in shards(cached.uri):
        assert groups_of(join(cached.uri, shard), "tile_id") == groups_of(join(tiles.uri, shard), "tile_id")


def test_a_job_is_watched_by_its_metrics(
    scraped_cache: tuple[CachedResponses, Any], tiles: Manifest, s3: S3Server
) -> None:
    cached, scraped = scraped_cache
    job = {"kind": "cache_responses", "run": caching(tiles, s3).output}
    stage = {"stage": "teacher responses", "unit": "tiles"}
    assert scraped.find("ray_histill_work_done", **job, **stage) == {"": cached.header.tiles}
    assert scraped.find("ray_histill_work_planned", **job, **stage) == {"": cached.header.tiles}
    assert scraped.find("ray_histill_items_done_total", **job) == {"": len(shards(cached.uri))}


def test_a_finished_cache_is_found(tiles: Manifest, s3: S3Server, cached: CachedResponses) -> None:
    before = {name: info.mtime for name, info in shards(cached.uri).items()}
    again = cache_responses(caching(tiles, s3))
    assert (again.uri, again.header, again.reused) == (cached.uri, cached.header, True)
    assert {name: info.mtime for name, info in shards(cached.uri).items()} == before


def test_an_interrupted_cache_is_completed(tiles: Manifest, s3: S3Server) -> None:
    config = caching(tiles, s3, output=f"s3://{s3.bucket}/ray-local/interrupted")
    whole = cache_responses(config)
    filesystem, path = arrow_filesystem(whole.uri, STORAGE)
    before = shards(whole.uri)
    lost, *kept = sorted(before)
    answers = {shard: groups_of(join(whole.uri, shard), "response") for shard in before}
    filesystem.delete_file(f"{path}/{HEADER_NAME}")
    filesystem.delete_file(f"{path}/{lost}")

    again = cache_responses(config)
    assert (again.uri, again.header, again.reused) == (whole.uri, whole.header, False)
    after = shards(whole.uri)
    assert {shard: groups_of(join(whole.uri, shard), "response") for shard in after} == answers
    assert [after[shard].mtime for shard in kept] == [before[shard].mtime for shard in kept]  # not written again


def test_another_teacher_has_another_address(
    tiles: Manifest, s3: S3Server, cached: CachedResponses, tmp_path: Any
) -> None:
    addresses = {address(ClassicalTeacher(mpp).digest, tiles.header.digest) for mpp in (0.25, 0.5)}
    assert len(addresses) == 2
    assert join(
        f"s3://{s3.bucket}/ray-local/responses", address(ClassicalTeacher(0.5).digest, tiles.header.digest)
    ) == (cached.uri)
    network = TeacherConfig(model=str(tmp_path))
    card = ModelCard(
        encoder="csat_tiny",
        decoder_channels=(16, 16, 8, 8, 8),
        classes=("background", "nucleus"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        tile_px=64,
        tile_mpp=0.5,
        size_px=64,
        tiles_digest="0" * 64,
        train_cases=(),
        histill="0",
    )
    save(str(tmp_path), build(card), card)
    with pytest.raises(InputError, match="another teacher"):
        check_cache(cached.uri, cached.header, tiles, load_teacher(network, 0.5, STORAGE))
    of_network = cache_responses(caching(tiles, s3, teacher=network))
    assert of_network.uri != cached.uri
    check_cache(of_network.uri, of_network.header, tiles, load_teacher(network, 0.5, STORAGE))


def test_a_cache_answers_its_own_tiles_only(
    tile_set: Callable[..., Manifest], s3: S3Server, cached: CachedResponses, tmp_path: Any
) -> None:
    others = tile_set(tmp_path, seed=1)
    with pytest.raises(InputError, match="another tile set"):
        check_cache(cached.uri, cached.header, others, load_teacher(CLASSICAL, 0.5, STORAGE))
    with pytest.raises(InputError, match="histill cache"):
        read_header(join(cached.uri, "elsewhere"), STORAGE)


def test_bad_tiles_and_bad_shards(
    tile_set: Callable[..., Manifest],
    spoil_tile: Callable[..., str],
    truncate_shard: Callable[..., str],
    s3: S3Server,
    tmp_path: Any,
) -> None:
    manifest = tile_set(tmp_path / "tiles")
    spoil_tile(manifest, 9)
    config = caching(manifest, s3, output=str(tmp_path / "responses"))
    cached = cache_responses(config)
    assert (cached.header.tiles, cached.header.undecodable) == (24, 1)
    assert sorted(path.name for path in (tmp_path / "responses").rglob("*.part")) == []

    shard = truncate_shard(manifest, 9)
    config = caching(manifest, s3, output=str(tmp_path / "others"))
    with pytest.raises(ray.exceptions.RayError) as raised:
        cache_responses(config)
    known = unwrap_error(raised.value)
    assert isinstance(known, InputError)
    assert "truncated" in str(known)
    assert shard in str(known)
    assert len(str(known).splitlines()) == 1
    assert not exists(
        join(config.output, address(ClassicalTeacher(0.5).digest, manifest.header.digest), HEADER_NAME), STORAGE
    )


def test_a_run_learns_from_each_view_in_turn(
    tiles: Manifest, s3: S3Server, pretraining: Callable[..., PretrainConfig], cached: CachedResponses
) -> None:
    """A cache of the views that the run will show; interrupted, and then completed."""
    config = caching(tiles, s3, views=2, seed=4, augment=Augment(crop_px=32))
    several = cache_responses(config)
    assert several.uri != cached.uri
    assert (several.header.views, several.header.seed, several.header.crop_px) == (2, 4, 32)

    filesystem, path = arrow_filesystem(several.uri, STORAGE)
    columns = response_columns(2)
    before = {shard: [groups_of(join(several.uri, shard), name) for name in columns] for shard in shards(several.uri)}
    filesystem.delete_file(f"{path}/{HEADER_NAME}")
    filesystem.delete_file(f"{path}/{min(before)}")
    again = cache_responses(config)
    assert (again.uri, again.header, again.reused) == (several.uri, several.header, False)
    after = {shard: [groups_of(join(several.uri, shard), name) for name in columns] for shard in shards(several.uri)}
    assert after == before

    with pytest.raises(InputError, match=r"data\.augment\.crop_px is null .* crop_px 32; set it to that"):
        prepare_run(pretraining("several-views", tiles.uri, {"responses": several.uri}))
    augment = {"data.augment.crop_px": 32, "data.augment.flips": False}
    run = pretraining("several-views", tiles.uri, {"responses": several.uri, **augment})
    source, teacher = prepare_run(run).source, ClassicalTeacher(tiles.header.mpp)
    stream = TileStream(tiles, source, "train", Views(64), 16, 0, 1, threads=1)
    seen = []
    for epoch in range(2):
        (batch,) = stream.training_epoch(epoch, seed=3, augment=run.data.augment)
        assert batch.response is not None
        answers = teacher.outputs.pack(teacher.respond(batch.student))
        assert (answers - levels_to_logits(batch.response)).abs().max() <= STEP / 2 + 1e-4
        seen.append(batch.student[batch.index.argsort()])
    assert not torch.equal(*seen)


@pytest.mark.parametrize("flips", [False, True])
def test_a_cached_answer_teaches_as_a_live_one(
    tiles: Manifest, cached: CachedResponses, pretraining: Callable[..., PretrainConfig], flips: bool
) -> None:
    prepared = prepare_run(pretraining("cached-or-live", tiles.uri, {"responses": cached.uri}))

    def batch(source: TileSource) -> Any:
        stream = TileStream(
            manifest=tiles,
            source=source,
            split="train",
            views=Views(64, None if source.responses else 64),
            batch_size=8,
            worker=0,
            workers=1,
            threads=1,
        )
        return next(stream.training_epoch(0, seed=3, augment=Augment(flips=flips)))

    teacher = ClassicalTeacher(tiles.header.mpp)
    from_cache = batch(prepared.source)
    live = batch(TileSource(tiles.uri, tiles.header.digest, STORAGE))
    assert torch.equal(live.student, from_cache.student)
    answers = teacher.respond(live.teacher)
    error = (answers[:, 1:] - answers[:, :1] - levels_to_logits(from_cache.response)).abs().max()
    assert 0 < error <= STEP / 2 + 1e-4

    torch.manual_seed(0)
    model = build(prepared.card).eval()
    weights = pretraining("cached-or-live", tiles.uri).loss
    with torch.inference_mode():
        student = model(live.student.float())
        losses = [
            float(TrainingTask(prepared.card.outputs, weights, Responses(who)).loss(model, what).loss)
            for who, what in ((teacher, live), (None, from_cache))
        ]
    # The teacher's probability changes by at most 1/4 of its logit's change, the loss by that times the student's logit
    bound = 0.25 * STEP / 2 * float((student[:, 1] - student[:, 0]).abs().mean())
    assert abs(losses[0] - losses[1]) <= bound + 1e-6
