"""Students that nobody has trained, for what is done with models."""

from pathlib import Path

from histill.config.common import Storage
from kill_runs.place import TILE_PX, Place


def student(place: Place, tiles: str, seed: int) -> str:
    """The folder of a segmenter of its own weights for each seed; that of seed 1 sees a quarter of the pixels."""
    folder = place.folder / "models" / str(seed)
    if not folder.is_dir():
        _save(folder, tiles, seed)
    return str(folder)


def _save(folder: Path, tiles: str, seed: int) -> None:
    import torch

    from histill.artifacts import model_folder
    from histill.artifacts.model_folder import ModelCard
    from histill.tiles.manifest import case_digests, read_manifest

    manifest = read_manifest(tiles, Storage())
    card = ModelCard(
        kind="segmentation", encoder="csat_tiny", decoder_channels=(16, 16, 8, 8, 8),
        classes=("background", "nucleus"), mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2), tile_px=TILE_PX,
        tile_mpp=manifest.header.mpp, size_px=TILE_PX // (1 + seed), tiles_digest=manifest.header.digest,
        train_cases=case_digests(manifest, "train"), histill="0.1.0",
    )  # fmt: skip
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    model_folder.save(str(folder), model_folder.build(card), card)
