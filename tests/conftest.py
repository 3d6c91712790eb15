"""Synthetic tiles, and real servers shared by the whole session; each starts when the first test asks for it."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from hypothesis import settings
from PIL import Image

from histill.config.common import Storage
from histill.local.ray_head import RayHead, ray_head
from histill.local.s3 import S3Server, s3_server
from histill.local.tracking import TrackingServer, mlflow_server
from histill.storage.control import read_bytes, write_bytes
from histill.storage.filesystems import arrow_filesystem
from histill.storage.uris import join
from histill.tiles.manifest import Manifest, write_manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.shards import Tile, content_hash, write_shard

CASES = 6  # of a synthetic tile set: four to learn from, one to validate, one to test
ROWS_PER_GROUP, ROWS_PER_SHARD = 4, 8


def pytest_configure() -> None:
    # Threads do nothing for small tensors, and on a busy machine they wait for each other; torch reads it on import.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Ray reads it when it is imported, which test modules may do before any fixture runs.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A loaded machine is slow now and then. The cases are the same in every run; HISTILL_FUZZ=20 looks for new ones.
    settings.register_profile("any machine", deadline=None, derandomize="HISTILL_FUZZ" not in os.environ)
    settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _ctrl_c_stays_what_it_was() -> Iterator[None]:
    """Ray Tune and Ray Train answer it in their own way and leave it so, which is for histill to put right."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with the bucket `tests`; use a prefix of your own. No environment variable is set."""
    with s3_server(tmp_path_factory.mktemp("s3"), "tests") as server:
        yield server


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """An MLflow tracking server. No environment variable is set."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def ray_local(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray of 4 CPUs that the test's process is the driver of; its workers have the credentials of `s3`.

    The dashboard is on and the workers know the cluster's address: without either, trials that Tune stops
    early keep their placement groups. The driver's environment holds the same variables while it runs.
    """
    with ray_head(tmp_path_factory.mktemp("ray"), cpus=4, env=s3.environment(), token_auth=False) as head:
        environment = {**s3.environment(), **head.environment()}
        with patch.dict(os.environ, environment):
            import ray

            ray.init(log_to_driver=False, runtime_env={"env_vars": {"RAY_ADDRESS": head.address}})
            try:
                yield head
            finally:
                ray.shutdown()


@pytest.fixture(scope="session")
def draw_tile() -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """`draw(seed, tile_px)`: an H&E-like tile at 0.5 um/px, uint8 [H, W, 3], and the mask of its nuclei, uint8 [H, W].

    Haematoxylin discs of 8 to 11 um on an eosin ground, made by the inverse of the colour deconvolution.
    """
    return _draw_tile


@pytest.fixture(scope="session")
def tile_set() -> Callable[..., Manifest]:
    """`make(uri, *, tiles, cases, tile_px, masks, labels, seed, storage)`: writes shards and a manifest of such tiles.

    The tiles stand case by case, of six cases unless told: one is of split val, one of test, the others of train.
    Shards have 8 tiles in two row groups; every fourth tile is a PNG, the others are JPEGs; the resolution is 0.5
    um/px, the masks are of the classes 0 and 1. With `labels` every second tile is a "stroma" without nuclei and the
    others are "tumour".
    """
    return _make_tile_set


@pytest.fixture(scope="session")
def spoil_tile() -> Callable[..., str]:
    """`spoil(manifest, row, storage)`: cuts the JPEG of one tile short within its shard; returns the tile's id."""
    return _spoil_tile


@pytest.fixture(scope="session")
def mark_mask() -> Callable[..., str]:
    """`mark(manifest, row, value, storage)`: the set with a value in one pixel of one mask; returns the tile's id."""
    return _mark_mask


@pytest.fixture(scope="session")
def truncate_shard() -> Callable[..., str]:
    """`truncate(manifest, row, storage)`: cuts the shard of one tile in half; returns the shard's URI."""
    return _truncate_shard


def _draw_tile(seed: int, tile_px: int, nuclei: bool = True) -> tuple[np.ndarray, np.ndarray]:
    from skimage.color import hed2rgb
    from skimage.filters import gaussian

    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:tile_px, :tile_px]
    mask = np.zeros((tile_px, tile_px), np.uint8)
    for _ in range(max(2, tile_px * tile_px // 1000) if nuclei else 0):
        row, column = random.uniform(0, tile_px, 2)
        mask |= (rows - row) ** 2 + (columns - column) ** 2 < random.uniform(8, 11) ** 2
    stains = np.zeros((tile_px, tile_px, 3))
    stains[..., 0] = 0.01 + 0.12 * gaussian(mask.astype(float), 0.7)
    stains[..., 1] = 0.05
    stains += random.normal(0, 0.004, stains.shape)
    image = (hed2rgb(stains.clip(0)) * 255).round().astype(np.uint8)
    return image, mask


def _make_tile_set(
    uri: Any,
    *,
    tiles: int = 24,
    cases: int = CASES,
    tile_px: int = 64,
    masks: bool = True,
    labels: bool = False,
    seed: int = 0,
    storage: Storage = Storage(),  # noqa: B008
) -> Manifest:
    uri = str(uri)
    made = [_synthetic_tile(number, number * cases // tiles, tile_px, masks, labels, seed) for number in range(tiles)]
    rows = []
    for start in range(0, tiles, ROWS_PER_SHARD):
        shard = f"shards/{start // ROWS_PER_SHARD:04d}.parquet"
        part = made[start : start + ROWS_PER_SHARD]
        write_shard(join(uri, shard), part, ROWS_PER_GROUP, storage)
        for position, tile in enumerate(part):
            case = int(tile.case.removeprefix("case-"))
            rows.append(
                {
                    "tile_id": tile.tile_id,
                    "slide": tile.slide,
                    "case": tile.case,
                    "x": tile.x,
                    "y": tile.y,
                    "mpp": tile.mpp,
                    "size_px": tile_px,
                    "label": tile.label,
                    "has_mask": tile.mask is not None,
                    "split": "train" if case < cases - 2 else "val" if case == cases - 2 else "test",
                    "shard": shard,
                    "row_group": position // ROWS_PER_GROUP,
                    "row": position % ROWS_PER_GROUP,
                    "content": content_hash(tile.image, tile.mask),
                }
            )
    table = pa.Table.from_pylist(rows, schema=MANIFEST)
    return write_manifest(uri, table, tile_px=tile_px, mpp=0.5, ingest="synthetic", storage=storage)


def _synthetic_tile(number: int, case: int, tile_px: int, masks: bool, labels: bool, seed: int) -> Tile:
    nuclei = not labels or number % 2 == 0
    image, mask = _draw_tile(seed * 100_003 + number, tile_px, nuclei)
    encoded = _png(image) if number % 4 == 3 else simplejpeg.encode_jpeg(image, quality=95, colorsubsampling="444")
    name = f"case-{case}"
    return Tile(
        tile_id=f"{name}/{number}",
        slide=name,
        case=name,
        x=number * tile_px,
        y=0,
        mpp=0.5,
        label=("tumour" if nuclei else "stroma") if labels else None,
        image=encoded,
        mask=_png(mask) if masks else None,
    )


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _spoil_tile(manifest: Manifest, row: int, storage: Storage = Storage()) -> str:  # noqa: B008
    return _change_tile(manifest, row, "image", lambda data: data[: len(data) // 2], storage)


def _mark_mask(manifest: Manifest, row: int, value: int, storage: Storage = Storage()) -> str:  # noqa: B008
    def marked(data: bytes) -> bytes:
        mask = np.array(Image.open(io.BytesIO(data)))
        mask[-1, -1] = value
        return _png(mask)

    tile = _change_tile(manifest, row, "mask", marked, storage)
    rows = manifest.table.to_pylist()
    shard = pq.read_table(
        io.BytesIO(read_bytes(join(manifest.uri, rows[row]["shard"]), storage)), columns=["tile_id", "image", "mask"]
    )
    (changed,) = [each for each in shard.to_pylist() if each["tile_id"] == tile]
    rows[row]["content"] = content_hash(changed["image"], changed["mask"])
    header, table = manifest.header, pa.Table.from_pylist(rows, schema=MANIFEST)
    write_manifest(manifest.uri, table, tile_px=header.tile_px, mpp=header.mpp, ingest=header.ingest, storage=storage)
    return tile


def _change_tile(manifest: Manifest, row: int, column: str, change: Callable[[bytes], bytes], storage: Storage) -> str:
    place = manifest.table.slice(row, 1).to_pylist()[0]
    filesystem, path = arrow_filesystem(join(manifest.uri, place["shard"]), storage)
    shard = pq.read_table(path, filesystem=filesystem)
    rows = shard.to_pylist()
    (changed,) = [tile for tile in rows if tile["tile_id"] == place["tile_id"]]
    changed[column] = change(changed[column])
    pq.write_table(pa.Table.from_pylist(rows, shard.schema), path, filesystem=filesystem, row_group_size=ROWS_PER_GROUP)
    return str(place["tile_id"])


def _truncate_shard(manifest: Manifest, row: int, storage: Storage = Storage()) -> str:  # noqa: B008
    uri = join(manifest.uri, manifest.table["shard"][row].as_py())
    data = read_bytes(uri, storage)
    write_bytes(uri, data[: len(data) // 2], storage)
    return uri
