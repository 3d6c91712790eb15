"""The environment in which jobs are killed: permanent servers, the jobs' inputs, and their environment variables."""

import contextlib
import csv
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from chaos.kill_runs.objects import bucket_client
from chaos.kill_runs.processes import Family, adopting
from chaos.kill_runs.writes import Writes
from histill.local.ray_head import RayHead, base_environment, ray_head
from histill.local.s3 import S3Server, s3_server
from histill.local.tracking import TrackingServer, mlflow_server
from testbed.fault_proxy import Faults, fault_proxy

ROOT = Path(__file__).parents[2]
TILE_PX, MPP = 64, 0.5
CASES, IMAGES_PER_CASE = 20, 3
TRAIN_CASES, VAL_CASES = 8, 4
SLIDES, SLIDE_PX = 8, 256
CLASSES = ("stroma", "tumour")


@dataclass(frozen=True)
class Place:
    """Servers and inputs that all jobs share; `s3_endpoint` and `tracking_uri` are proxies that count writes."""

    folder: Path  # for what local jobs write, and for logs
    scratch: Path  # for temporary files; its path is short, as Ray's sockets lie below it
    s3: S3Server
    tracking: TrackingServer
    head: RayHead
    s3_endpoint: str
    tracking_uri: str
    writes: Writes
    family: Family

    @property
    def index(self) -> Path:
        """The index of the images."""
        return self.folder / "images" / "index.csv"

    @property
    def slides(self) -> list[str]:
        """URIs of slides in the bucket."""
        return [f"s3://{self.s3.bucket}/slides/slide-{number}.tiff" for number in range(SLIDES)]

    def environment(self, chain: str, own_ray: bool) -> dict[str, str]:
        """The environment of a chain's jobs, which have their own folder for temporary files."""
        temporary = self.temporary(chain)
        temporary.mkdir(exist_ok=True)
        return {
            **{key: value for key, value in base_environment().items() if not key.startswith(("AWS_", "MLFLOW_"))},
            **self.s3.environment(),
            **({} if own_ray else self.head.environment()),
            "PYTHONPATH": str(ROOT / "platform"),
            "TMPDIR": str(temporary),
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),
        }

    def temporary(self, chain: str) -> Path:
        """Folder for temporary files of a chain's drivers, and of the workers if they start their own Ray."""
        return self.scratch / chain

    @property
    def heads_temporary(self) -> Path:
        """Folder for temporary files of the permanent Ray's workers."""
        return self.scratch / "head"


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[Place]:
    """Start everything that jobs need, and stop it when the block is left."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(adopting())
        scratch = stack.enter_context(_scratch())
        (scratch / "head").mkdir()
        s3 = stack.enter_context(s3_server(folder / "s3", "kills"))
        tracking = stack.enter_context(mlflow_server(folder / "mlflow"))
        environment = s3.environment() | {"TMPDIR": str(scratch / "head")}
        head = stack.enter_context(ray_head(folder / "ray", cpus=max(2, os.cpu_count() or 2), env=environment))
        yield stack.enter_context(place(folder, scratch, s3, tracking, head))


@contextlib.contextmanager
def place(folder: Path, scratch: Path, s3: S3Server, tracking: TrackingServer, head: RayHead) -> Iterator[Place]:
    """A place with running servers, each behind a proxy that counts writes until the block is left."""
    writes, never = Writes(), Faults(rate=0)
    with (
        fault_proxy(s3.endpoint, never) as to_s3,
        fault_proxy(tracking.uri, never, rewrite_host=True) as to_tracking,
    ):
        to_s3.heard = to_tracking.heard = writes.heard
        uris = to_s3.endpoint, to_tracking.endpoint
        made = Place(folder, scratch, s3, tracking, head, *uris, writes, Family.now())
        draw_images(made.index)
        with tempfile.TemporaryDirectory(dir=scratch) as drawn:
            client = bucket_client(s3)
            for number, uri in enumerate(made.slides):
                path = draw_slide(Path(drawn, f"{number}.tiff"), number)
                client.put_object(Bucket=s3.bucket, Key=uri.removeprefix(f"s3://{s3.bucket}/"), Body=path.read_bytes())
        yield made


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def draw_images(index: Path) -> None:
    """Write images of discs with their masks, labeled by whether there are discs, and their index."""
    index.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(CASES * IMAGES_PER_CASE):
        label = CLASSES[number % 2]
        picture, mask = _drawn(number, TILE_PX, discs=3 if label == "tumour" else 0)
        name = f"{number:03d}"
        Image.fromarray(picture).save(index.parent / f"{name}.png")
        Image.fromarray(mask).save(index.parent / f"{name}-mask.png")
        rows.append((f"{name}.png", f"{name}-mask.png", label, f"case-{number // IMAGES_PER_CASE:02d}"))
    with index.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "mask", "label", "case"), *rows])


def draw_slide(path: Path, seed: int) -> Path:
    """Write a small pyramidal TIFF, all tissue."""
    picture, _ = _drawn(1000 + seed, SLIDE_PX, discs=40)
    options = {"tile": (64, 64), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for level in (1, 2):
            reduced = picture.reshape(SLIDE_PX // level, level, SLIDE_PX // level, level, 3).mean(axis=(1, 3))
            resolution = (10_000 / (MPP * level),) * 2
            writer.write(reduced.round().astype(np.uint8), subfiletype=level - 1, resolution=resolution, **options)
    return path


def _drawn(seed: int, side: int, discs: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [side, side, 3] in H&E's colors, and the mask of its discs, uint8 [side, side]."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    mask = np.zeros((side, side), np.uint8)
    for row, column in random.uniform(0, side, (discs, 2)):
        mask |= ((rows - row) ** 2 + (columns - column) ** 2 < random.uniform(5, 9) ** 2).astype(np.uint8)
    picture = np.where(mask[..., None] == 1, (110, 70, 150), (230, 150, 200)) + random.normal(0, 6, (side, side, 3))
    return picture.clip(0, 255).astype(np.uint8), mask


def python(script: str, *arguments: str) -> list[str]:
    """The command of a job."""
    return [sys.executable, str(ROOT / "jobs" / script), *arguments]
