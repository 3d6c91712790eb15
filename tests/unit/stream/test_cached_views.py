"""Cached views: a batch's response is the teacher's response to what the student sees, whatever was drawn."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.augment import Augment
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.load import load_config
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.control import write_json
from histill.stream import views as view_module
from histill.stream.cached_views import CachedViews, check_crop
from histill.stream.decode import decode_image
from histill.stream.geometry import apply_symmetry, compose_symmetries
from histill.stream.read import TileSource
from histill.stream.responses import LIMIT, STEP, levels_to_logits
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.stream.views import UPRIGHT, Placement, Views, check_window, draw_numbers, draw_placements
from histill.teachers.cache import HEADER_NAME, CacheHeader, address, check_views, read_header
from histill.teachers.network import NetworkTeacher
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.teachers.teacher import Teacher
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import digest_tables
from histill.tiles.shards import TileShard, content_hash, shards_of
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

TILE = 64
SEED = 7  # of caches; runs have others unless a test says so
STORAGE = Storage()
OUTPUTS = OutputSpec("segmentation", ("background", "nucleus"))
HEADER = CacheHeader(teacher="t", classes=("background", "nucleus"), tiles_digest="d", tiles=24, undecodable=0)


@dataclass(frozen=True)
class Equivariant:
    """Answers each pixel by its own color, so that a turned tile gets the turned response."""

    outputs: OutputSpec = field(default=OutputSpec("segmentation", ("background", "pink", "blue")))
    digest: str = "equivariant"
    mpp: float | None = None

    def sees(self, side_px: int) -> int:
        return side_px

    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        red, green, blue = tiles.float().unbind(1)
        return torch.stack([(green - 128) / 30, (red - green) / 20, (blue - 200) / 16], dim=1)


@dataclass(frozen=True)
class Positional:
    """Answers by color and position within its input: only the very same view gets the same response."""

    outputs: OutputSpec = field(default=OutputSpec("segmentation", ("background", "nucleus", "other")))
    digest: str = "positional"
    mpp: float | None = None
    asked: list[int] = field(default_factory=list)

    def sees(self, side_px: int) -> int:
        return side_px

    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(tiles))
        side = tiles.shape[-1]
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        ramp = (rows * 0.11 + columns * 0.04 - 4).expand(len(tiles), side, side)
        gray = (tiles.float().mean(1) - 160) / 40
        return torch.stack([torch.zeros_like(ramp), ramp + gray, gray - 2 * ramp], dim=1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=24, tile_px=TILE)  # 16 to learn from; three shards


def cached_by(teacher: Teacher, manifest: Manifest, folder: Path, views: int, augment: Augment) -> CachedViews:
    """Cache responses as the job does, without a cluster."""
    cached = CachedViews(str(folder), teacher.outputs, views, SEED, augment)
    for shard in shards_of(manifest):
        write_shard_responses(teacher, manifest, shard, job_of(manifest, cached))
    return cached


def job_of(manifest: Manifest, cached: CachedViews) -> ResponseJob:
    config = CacheConfig.model_validate(
        {"tiles": manifest.uri, "teacher": {"classical": True}, "output": "unused", "batch_size": 3}
    )
    return ResponseJob(config, cached)


def stream(manifest: Manifest, cached: CachedViews | None, **changes: Any) -> TileStream:
    values: dict[str, Any] = {
        "manifest": manifest,
        "source": TileSource(manifest.uri, manifest.header.digest, STORAGE, masks=True, responses=cached),
        "split": "train",
        "views": Views(TILE),  # the student sees every pixel that the teacher saw
        "batch_size": 8,
        "worker": 0,
        "workers": 1,
    }
    return TileStream(**values | changes)


def shown(batches: Iterator[TileBatch]) -> Iterator[tuple[int, TileBatch, int]]:
    """The tile, batch and slot of each valid place."""
    for batch in batches:
        assert torch.equal(batch.valid, batch.index >= 0)
        for slot in np.flatnonzero(batch.valid):
            yield int(batch.index[slot]), batch, int(slot)


def answer(teacher: Teacher, view: np.ndarray) -> np.ndarray:
    """The response to one view, uint8 [S, S, 3], clipped but not quantized: float32 [K - 1, S, S]."""
    logits = teacher.respond(torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1))[None]))
    return teacher.outputs.pack(logits)[0].clamp(-LIMIT, LIMIT).numpy()


def pixels(batch: TileBatch, slot: int) -> np.ndarray:
    return batch.student[slot].permute(1, 2, 0).contiguous().numpy()


def stored(batch: TileBatch, slot: int) -> np.ndarray:
    assert batch.response is not None
    return levels_to_logits(batch.response[slot]).numpy()


def reference(plane: np.ndarray, symmetry: int) -> np.ndarray:
    """[H, W, ...]: counter-clockwise quarter turns, then a mirror from left to right."""
    plane = np.rot90(plane, symmetry % 4)
    return plane[:, ::-1] if symmetry >= 4 else plane


def undone(plane: np.ndarray, symmetry: int) -> np.ndarray:
    """The inverse of `reference`."""
    return np.rot90(plane[:, ::-1] if symmetry >= 4 else plane, -(symmetry % 4))


def window(plane: np.ndarray, place: Placement) -> np.ndarray:
    """Crop a whole tile, [H, W, ...], to the window of `place`."""
    part = plane[place.top : place.top + place.side, place.left : place.left + place.side]
    return reference(part, place.symmetry)


GEOMETRIES = pytest.mark.parametrize(
    ("views", "crop_px", "flips"),
    [(views, crop, flips) for views in (1, 3) for crop in (None, 32) for flips in (False, True)],
)


def geometry(views: int, crop_px: int | None) -> Augment:
    """The augmentation of the cache."""
    return UPRIGHT if views == 1 else Augment(crop_px=crop_px)


@GEOMETRIES
def test_an_equivariant_teachers_answer_is_that_to_the_students_view(
    manifest: Manifest, tmp_path: Path, views: int, crop_px: int | None, flips: bool
) -> None:
    teacher = Equivariant()
    mine = stream(manifest, cached_by(teacher, manifest, tmp_path, views, geometry(views, crop_px)))
    for epoch in (0, 1, 5):
        for _, batch, slot in shown(mine.training_epoch(epoch, seed=1, augment=Augment(flips=flips, crop_px=crop_px))):
            view = pixels(batch, slot)
            assert view.shape[0] == (crop_px or TILE)
            assert np.abs(stored(batch, slot) - answer(teacher, view)).max() <= STEP / 2 + 1e-5


@GEOMETRIES
def test_any_teachers_answer_is_that_to_the_view_it_was_shown(
    manifest: Manifest, tmp_path: Path, views: int, crop_px: int | None, flips: bool
) -> None:
    teacher = Positional()
    mine = stream(manifest, cached_by(teacher, manifest, tmp_path, views, geometry(views, crop_px)))
    whole = {tile: pixels(batch, slot) for tile, batch, slot in shown(stream(manifest, None).exact_pass())}
    augment = Augment(flips=flips, crop_px=crop_px)
    for epoch in (0, 1, 5):
        for tile, batch, slot in shown(mine.training_epoch(epoch, seed=1, augment=augment)):
            draws = draw_numbers(1, epoch, np.array([tile]), np.array([0]))
            (place,) = draw_placements(augment, draws, TILE, Views(TILE))
            if views == 1:  # the teacher saw the whole tile; the batch has a crop of its response
                answered = window(answer(teacher, whole[tile]).transpose(1, 2, 0), place).transpose(2, 0, 1)
            else:  # the teacher saw this very view, before the run's own flip, if any
                view = undone(pixels(batch, slot), place.symmetry)
                answered = reference(answer(teacher, view).transpose(1, 2, 0), place.symmetry).transpose(2, 0, 1)
            assert np.abs(stored(batch, slot) - answered).max() <= STEP / 2 + 1e-5


@pytest.mark.parametrize("flips", [False, True])
def test_views_and_masks_show_the_same_part_of_the_tile(
    manifest: Manifest, tmp_path: Path, draw_tile: Callable[..., tuple[np.ndarray, np.ndarray]], flips: bool
) -> None:
    cached = cached_by(Equivariant(), manifest, tmp_path, 3, Augment(crop_px=32))
    whole = {tile: pixels(batch, slot) for tile, batch, slot in shown(stream(manifest, None).exact_pass())}
    places = set()
    for tile, batch, slot in shown(
        stream(manifest, cached).training_epoch(4, seed=1, augment=Augment(flips=flips, crop_px=32))
    ):
        (place,) = cached.placements(1, np.array([tile]), TILE)
        if flips:
            drawn = int(draw_numbers(1, 4, np.array([tile]), np.array([0]))[0, 0] * 8)
            place = replace(place, symmetry=compose_symmetries(place.symmetry, drawn))
        assert batch.mask is not None
        assert np.array_equal(pixels(batch, slot), window(whole[tile], place))
        assert np.array_equal(batch.mask[slot].numpy(), window(draw_tile(tile, TILE)[1], place))
        places.add(place)
    assert len(places) > 12


def test_epochs_take_the_views_in_turn(manifest: Manifest, tmp_path: Path) -> None:
    cached = cached_by(Equivariant(), manifest, tmp_path, 3, Augment(crop_px=32))

    def epoch(number: int, **augment: Any) -> dict[int, tuple[bytes, bytes]]:
        batches = stream(manifest, cached).training_epoch(number, seed=1, augment=Augment(crop_px=32, **augment))
        return {tile: (pixels(b, s).tobytes(), stored(b, s).tobytes()) for tile, b, s in shown(batches)}

    turns = [epoch(number, flips=False) for number in range(4)]
    assert turns[0] == turns[3]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert all(turns[first][tile] != turns[second][tile] for tile in turns[0])
    flipped = [epoch(number, flips=True) for number in (0, 3)]
    assert flipped[0] != flipped[1]  # the run's own flips are redrawn


def test_an_exact_pass_shows_the_first_view(manifest: Manifest, tmp_path: Path) -> None:
    teacher = Positional()
    cached = cached_by(teacher, manifest, tmp_path, 3, Augment(crop_px=32))
    for batches in (stream(manifest, cached).exact_pass(), stream(manifest, cached, split="val").exact_pass()):
        for tile, batch, slot in shown(batches):
            assert np.abs(stored(batch, slot) - answer(teacher, pixels(batch, slot))).max() <= STEP / 2 + 1e-5
            assert batch.student.shape[-1] == 32
            assert cached.placements(0, np.array([tile]), TILE)[0].side == 32


def test_batches_of_views_do_not_depend_on_the_workers(manifest: Manifest, tmp_path: Path) -> None:
    cached = cached_by(Equivariant(), manifest, tmp_path, 2, Augment(crop_px=32))
    augment = Augment(crop_px=32, stain=0.1)
    alone = list(stream(manifest, cached).training_epoch(1, seed=1, augment=augment))
    shares = [
        list(stream(manifest, cached, worker=worker, workers=2).training_epoch(1, seed=1, augment=augment, from_step=1))
        for worker in range(2)
    ]
    for whole, *parts in zip(alone[1:], *shares, strict=True):
        for name in ("index", "student", "mask", "response"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_a_smaller_student_sees_the_same_window(manifest: Manifest, tmp_path: Path) -> None:
    cached = cached_by(Equivariant(), manifest, tmp_path, 2, Augment(crop_px=32))
    augment = Augment(crop_px=32)
    large = {t: pixels(b, s) for t, b, s in shown(stream(manifest, cached).training_epoch(0, seed=1, augment=augment))}
    small = stream(manifest, cached, views=Views(32)).training_epoch(0, seed=1, augment=augment)
    for tile, batch, slot in shown(small):
        assert batch.response is not None
        assert batch.response.shape[-1] == 32
        averaged = large[tile].astype(float).reshape(16, 2, 16, 2, 3).mean((1, 3))
        assert np.abs(pixels(batch, slot) - averaged).mean() < 2  # JPEGs are halved in the DCT domain


@pytest.mark.parametrize("tile_px", [64, 224, 250, 256, 512, 1024])
def test_windows_are_whole_pixels_for_every_student(tile_px: int) -> None:
    cached = CachedViews("", OUTPUTS, 2, SEED, Augment(crop_px=32))
    places = cached.placements(1, np.arange(200), tile_px)
    assert len({place.left for place in places}) > 1
    for size_px in range(32, tile_px + 1, 32):
        for place in places:
            assert place.left * size_px % tile_px == place.top * size_px % tile_px == 0
            assert place.left + place.side <= tile_px
            assert place.top + place.side <= tile_px


def test_a_view_is_a_function_of_seed_view_and_tile() -> None:
    cached = CachedViews("", OUTPUTS, 4, SEED, Augment(crop_px=32))
    tiles = np.arange(500)
    first = cached.placements(2, tiles, 512)
    assert first[100:200] == cached.placements(2, tiles[100:200], 512)
    for other in (cached.placements(3, tiles, 512), replace(cached, seed=8).placements(2, tiles, 512)):
        assert sum(one == two for one, two in zip(first, other, strict=True)) < 5
    (upright,) = set(CachedViews("", OUTPUTS).placements(0, tiles, 512))
    assert upright == Placement(0, 0, 512, 0)


def test_a_run_of_the_caches_seed_draws_flips_of_its_own() -> None:
    tiles = np.arange(16000)
    views = CachedViews("", OUTPUTS, 2, SEED, Augment()).placements(1, tiles, TILE)
    drawn = (draw_numbers(SEED, 1, tiles, np.zeros(len(tiles), np.int64))[:, 0] * 8).astype(int)
    counts = np.bincount(np.array([place.symmetry for place in views]) * 8 + drawn, minlength=64)
    assert ((counts - 250) ** 2 / 250).sum() < 116  # 63 degrees of freedom: exceeded once in 20 000


def test_a_tile_is_decoded_once_for_all_views(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def counted(data: memoryview, *size: int, into: np.ndarray | None) -> np.ndarray:
        decoded.append(bytes(data))
        return decode_image(data, *size, into=into)

    monkeypatch.setattr(view_module, "decode_image", counted)
    teacher = Positional()
    cached_by(teacher, manifest, tmp_path, 3, Augment())
    assert len(decoded) == len(set(decoded)) == 24
    assert sum(teacher.asked) == 3 * 24


def count_undecodable(teacher: Teacher, manifest: Manifest, job: ResponseJob) -> list[int]:
    """The number of undecodable tiles in each shard, all of whose tiles get a row."""
    found = [write_shard_responses(teacher, manifest, shard, job) for shard in shards_of(manifest)]
    assert [len(responses) for responses in found] == [8, 8, 8]
    return [responses.count(b"") for responses in found]


@pytest.mark.parametrize("views", [1, 3])
def test_an_interrupted_cache_neither_loses_nor_doubles_a_row(manifest: Manifest, tmp_path: Path, views: int) -> None:
    cached_by(Positional(), manifest, tmp_path, views, geometry(views, 32))
    before = {path: pq.read_table(path) for path in sorted(tmp_path.rglob("*.parquet"))}
    lost, cut, kept = before
    written = kept.stat().st_mtime_ns
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-10])
    teacher = Positional()
    cached = CachedViews(str(tmp_path), teacher.outputs, views, SEED, geometry(views, 32))
    assert count_undecodable(teacher, manifest, job_of(manifest, cached)) == [0, 0, 0]
    assert sum(teacher.asked) == views * 16
    assert kept.stat().st_mtime_ns == written
    after = {path: pq.read_table(path) for path in sorted(tmp_path.rglob("*.parquet"))}
    assert after == before
    ids = [tile for table in after.values() for tile in table["tile_id"].to_pylist()]
    assert ids == read_table(manifest)["tile_id"].to_pylist()


def test_an_undecodable_tile_has_an_empty_response_in_all_views(
    tmp_path: Path, tile_set: Callable[..., Manifest], spoil_tile: Callable[..., str]
) -> None:
    manifest = tile_set(tmp_path / "tiles", tiles=24, tile_px=TILE)
    name = spoil_tile(manifest, 9)
    cached = CachedViews(str(tmp_path / "cache"), Equivariant().outputs, 3, SEED, Augment(crop_px=32))
    for _ in range(2):  # computed, then reused
        assert count_undecodable(Equivariant(), manifest, job_of(manifest, cached)) == [0, 1, 0]
    empty = [
        (row["tile_id"], view)
        for path in sorted(tmp_path.rglob("cache/**/*.parquet"))
        for row in pq.read_table(path).to_pylist()
        for view in range(3)
        if not row[f"response_{view}"]
    ]
    assert empty == [(name, 0), (name, 1), (name, 2)]
    batches = list(stream(manifest, cached, max_corrupt=1).training_epoch(2, seed=0, augment=Augment(crop_px=32)))
    assert [tile for batch in batches for tile in batch.index[~batch.valid].tolist()] == [9]


def test_a_shard_of_another_length_than_the_manifest_says_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    first = shards_of(manifest)[0]
    assert first == TileShard("shards/0000.parquet", 0, 8)
    shard = Path(manifest.uri, first.shard)
    whole, job = shard.read_bytes(), job_of(manifest, CachedViews(str(tmp_path), OUTPUTS))
    try:
        pq.write_table(pq.read_table(shard).slice(0, 7), shard, row_group_size=4)
        with pytest.raises(InputError, match=r"shard .*/shards/0000\.parquet has 3 tiles and its manifest says 4"):
            write_shard_responses(Equivariant(), manifest, first, job)
    finally:
        shard.write_bytes(whole)
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_address_says_what_the_cache_holds(manifest: Manifest) -> None:
    plain = address("teacher", "tiles")
    assert plain == hashlib.sha256(b"teacher:tiles:upright").hexdigest()[:16]  # caches of earlier versions are found
    others = [
        address("teacheR", "tiles"),
        address("teacher", "tileS"),
        *(
            address("teacher", "tiles", views, seed, augment)
            for views in (2, 3)
            for seed in (0, 1)
            for augment in (Augment(), Augment(crop_px=32), Augment(flips=False, crop_px=32), Augment(crop_px=64))
        ),
    ]
    assert len({plain, *others}) == 1 + len(others)

    row = read_table(manifest).slice(5, 1).to_pylist()[0]
    shard = pq.read_table(Path(manifest.uri, row["shard"])).to_pylist()[5]
    assert row["content"] == content_hash(shard["image"], shard["mask"])
    image = bytearray(shard["image"])
    image[-5] ^= 1
    contents = read_table(manifest)["content"].to_pylist()
    contents[5] = content_hash(bytes(image), shard["mask"])
    table = read_table(manifest)
    at = table.schema.get_field_index("content")
    changed = digest_tables([table.set_column(at, table.schema.field(at), [contents])])
    assert digest_tables([table]) == manifest.header.digest
    assert address("teacher", changed) != address("teacher", manifest.header.digest)


def test_one_byte_of_the_teacher_changes_the_address(tmp_path: Path) -> None:
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
    before = NetworkTeacher.load(str(tmp_path), STORAGE).digest
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (tmp_path / "model.json").write_text(card.model_dump_json())  # without the SHA-256 of the weights
    assert address(NetworkTeacher.load(str(tmp_path), STORAGE).digest, "tiles") != address(before, "tiles")


def test_the_header_knows_the_views(tmp_path: Path) -> None:
    header = HEADER.model_copy(update={"views": 3, "seed": 5, "flips": True, "crop_px": 32})
    write_json(str(tmp_path / HEADER_NAME), header.model_dump(mode="json"), STORAGE)
    assert read_header(str(tmp_path), STORAGE) == header
    assert header.at("there") == CachedViews("there", HEADER.outputs, 3, 5, Augment(crop_px=32))
    old = {key: value for key, value in HEADER.model_dump(mode="json").items() if key in ("teacher", "classes")}
    old |= {"tiles_digest": "d", "tiles": 24, "undecodable": 0}
    write_json(str(tmp_path / HEADER_NAME), old, STORAGE)
    assert read_header(str(tmp_path), STORAGE).at("there") == CachedViews("there", HEADER.outputs)


@pytest.mark.parametrize(("views", "cached", "run"), [(1, None, 32), (1, None, None), (3, 32, 32), (3, None, None)])
def test_runs_that_can_show_the_views_pass(views: int, cached: int | None, run: int | None) -> None:
    check_views("there", HEADER.model_copy(update={"views": views, "crop_px": cached}), Augment(crop_px=run))


@pytest.mark.parametrize(
    ("cached", "run", "said"), [(64, 32, "64"), (64, None, "64"), (None, 32, "null (whole tiles)")]
)
def test_a_run_of_other_windows_is_refused(cached: int | None, run: int | None, said: str) -> None:
    header = HEADER.model_copy(update={"views": 3, "crop_px": cached, "flips": True})
    with pytest.raises(InputError) as caught:
        check_views("there", header, Augment(crop_px=run))
    message = str(caught.value)
    assert message.startswith(f"data.augment.crop_px is {run or 'null (whole tiles)'}, and responses there are to")
    assert f"crop_px {said}" in message
    assert "\n" not in message


@pytest.mark.parametrize(("tile_px", "crop_px"), [(512, None), (512, 384), (512, 512), (250, 50), (224, 64)])
def test_windows_that_some_student_can_learn_from_pass(tile_px: int, crop_px: int | None) -> None:
    check_crop(Augment(crop_px=crop_px), tile_px)


@pytest.mark.parametrize(("tile_px", "crop_px"), [(512, 544), (512, 130), (250, 64)])
def test_windows_that_no_student_could_learn_from_are_refused(tile_px: int, crop_px: int) -> None:
    with pytest.raises(InputError, match=rf"^augment\.crop_px is {crop_px}, .* tile of {tile_px} px") as caught:
        check_crop(Augment(crop_px=crop_px), tile_px)
    for offered in str(caught.value).partition("choose one of ")[2].rstrip(".").split(", "):
        augment = Augment(crop_px=int(offered))
        sizes = range(32, tile_px + 1, 32)
        assert any(_fits(augment, tile_px, size) for size in sizes)
    assert not any(_fits(Augment(crop_px=crop_px), tile_px, size) for size in sizes)


def _fits(augment: Augment, tile_px: int, student_px: int) -> bool:
    try:
        check_window(augment, tile_px, Views(student_px))
    except InputError:
        return False
    return True


CACHE = ["tiles=tiles", "output=out", "teacher.classical=true"]


def test_views_are_configured() -> None:
    plain = load_config(CacheConfig, None, CACHE)
    assert (plain.views, plain.seed, plain.augment) == (1, 0, UPRIGHT)
    several = load_config(CacheConfig, None, [*CACHE, "views=4", "seed=3", "augment.crop_px=64"])
    assert (several.views, several.seed, several.augment) == (4, 3, Augment(flips=True, crop_px=64))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["augment.flips=true"], ["views is 1, the upright whole tile", "augment.flips", "ask for more views"]),
        (["augment={flips: false, crop_px: 64}"], ["views is 1", "augment.crop_px"]),
        (["seed=1"], ["views is 1", "seed"]),
        (["views=2"], ["views is 2", "all be alike", "augment.flips or augment.crop_px"]),
        (["views=2", "augment.stain=0.1"], ["a teacher sees tiles uncolored", "flips and crop_px"]),
        (["views=0"], ["'views' is 0"]),
        (["views=2", "augment.flips=true", "seed=2147483648"], ["'seed'"]),
    ],
)
def test_views_that_are_refused(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_config(CacheConfig, None, [*CACHE, *overrides])
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "\n" not in message


def test_turning_twice_is_turning_by_the_composed_symmetry() -> None:
    square = np.random.default_rng(0).integers(0, 255, (5, 5, 3)).astype(np.uint8)
    for first in range(8):
        assert compose_symmetries(first, 0) == compose_symmetries(0, first) == first
        for second in range(8):
            assert np.array_equal(
                apply_symmetry(square, compose_symmetries(first, second)),
                apply_symmetry(apply_symmetry(square, first), second),
            )
