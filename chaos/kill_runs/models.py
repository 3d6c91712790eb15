"""Students for jobs that need models: trained on the discs of a few images, well enough for the gates."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from chaos.kill_runs.place import IMAGES_PER_CASE, TILE_PX, TRAIN_CASES, Place
from histill.config.common import Storage

if TYPE_CHECKING:
    import torch

    from histill.models.transfer import Model

_GOOD, _MOST_STEPS = 0.8, 200  # Dice on the training images


def student(place: Place, tiles: str, seed: int) -> str:
    """The folder of a segmenter with different weights for each seed; that of seed 1 sees a quarter of the pixels."""
    folder = place.folder / "models" / str(seed)
    if not folder.is_dir():
        _make(folder, place.index.parent, tiles, seed)
    return str(folder)


def _make(folder: Path, images: Path, tiles: str, seed: int) -> None:
    import torch

    from histill.artifacts import model_folder
    from histill.artifacts.model_folder import ModelCard
    from histill.tiles.manifest import case_digests
    from histill.tiles.manifest_file import read_manifest

    manifest, step = read_manifest(tiles, Storage()), 1 + seed
    card = ModelCard(
        kind="segmentation", encoder="csat_tiny", decoder_channels=(16, 16, 8, 8, 8),
        classes=("background", "nucleus"), mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2), tile_px=TILE_PX,
        tile_mpp=manifest.header.mpp, size_px=TILE_PX // step, tiles_digest=manifest.header.digest,
        train_cases=case_digests(manifest, "train"), histill="0.1.0",
    )  # fmt: skip
    torch.manual_seed(seed)
    network = model_folder.build(card)
    names = [images / f"{number:03d}" for number in range(TRAIN_CASES * IMAGES_PER_CASE)]  # the cases come in order
    seen = np.stack([np.array(Image.open(f"{name}.png"))[::step, ::step] for name in names])
    masks = np.stack([np.array(Image.open(f"{name}-mask.png"))[::step, ::step] for name in names])
    _learn(network, torch.from_numpy(seen).permute(0, 3, 1, 2).float(), torch.from_numpy(masks).long())
    folder.mkdir(parents=True)
    model_folder.save(str(folder), network, card)


def _learn(network: "Model", seen: "torch.Tensor", masks: "torch.Tensor") -> None:
    """Train until the masks are learned. Raises RuntimeError when they are not after many steps."""
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(_MOST_STEPS):
        logits = network(seen)
        found = logits.argmax(1)
        if 2 * float((found * masks).sum()) >= _GOOD * float((found + masks).sum()):
            return
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, masks).backward()
        optimizer.step()
    raise RuntimeError("a student has not learned the discs of a few images")
