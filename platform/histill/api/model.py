"""Load a model and ask it about arrays of tiles."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from histill.config.common import Storage, Tracking
from histill.config.engine import ON_CPUS, EngineOption, check_installed
from histill.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import ArrayLike

    from histill.artifacts.model_folder import ModelCard
    from histill.models.transfer import Model as Network
    from histill.objects.instances import Instances


def load_model(
    uri: str,
    *,
    device: str = "cpu",
    engine: EngineOption = "torch",
    storage: Storage | None = None,
    tracking: Tracking | None = None,
) -> "Model":
    """Load a model from its folder, from the folder of a finished run or sweep, or from the registry.

    Args:
        uri: a folder, local or s3://, or `models:/name@alias` or `models:/name/3`.
        device: of torch.
        engine: what runs the model on a CPU: "torch", "onnxruntime" or "openvino", or "auto": of the others the first
            that is installed and quicker than torch, if there is one. One other than torch is started, which may take
            a minute, and compared with the model when it is first asked, by its first tiles. On other devices, torch.
        storage: options of the object storage; None: the defaults.
        tracking: the MLflow server of a registered model; None: that of MLFLOW_TRACKING_URI.

    Raises:
        InputError: there is no such model, its weights do not fit its card, or the engine is not installed, or not for
            the device.

    Examples:
        >>> model = histill.load_model("models:/nuclei-student@champion")
        >>> model.predict(tiles).shape  # of tiles uint8 [8, 3, 256, 256]
        torch.Size([8, 2, 256, 256])
    """
    from pathlib import Path

    import torch

    from histill.artifacts import model_folder
    from histill.registry.fetch import fetch_model
    from histill.storage.scratch import scratch_folder

    check_installed(engine)
    elsewhere = torch.device(device).type != "cpu"
    if engine in ON_CPUS and elsewhere:
        raise InputError(
            f"engine={engine} runs models on CPUs, and the device is {device}; leave one of them out.",
            code="option-not-applicable",
        )
    storage = storage or Storage()
    with scratch_folder() as folder:
        by_torch = engine == "torch" or elsewhere
        fetched = fetch_model(str(uri), tracking or Tracking(), Path(folder), with_onnx=not by_torch)
        where = model_folder.resolve(fetched, storage)
        network, card, digest = model_folder.load(where, storage)
        network = network.to(device)
        if by_torch:
            return Model(network, card, digest)
        from histill.engines.loaded_model import LoadedModel
        from histill.engines.start import start_when_asked

        loaded = LoadedModel(where, network, card, digest, storage, name=str(uri))
        loaded = replace(loaded, onnx=loaded.find_onnx())  # the folder may be gone when it is asked
    return Model(network, card, digest, start_when_asked(engine, loaded))


@dataclass(frozen=True, repr=False)
class Model:
    """A segmenter, classifier or encoder, with the card that says what it takes and gives."""

    network: "Network"  # pixels, float [B, 3, size_px, size_px] in 0..255 -> logits or embeddings
    card: "ModelCard"
    digest: str  # SHA-256 over card and weights
    answer: "Callable[[torch.Tensor], torch.Tensor] | None" = None  # an engine, which answers in the network's place

    def __repr__(self) -> str:
        card = self.card
        what = card.encoder if card.kind == "encoder" else f"{card.encoder} for {', '.join(self.classes)}"
        seen = f"tiles of {card.tile_px} px at {card.tile_mpp:g} um/px, seen at {card.size_px} px"
        return f"Model({card.kind}, {what}; {seen})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the outputs; empty for an encoder."""
        return self.card.outputs.scored

    def predict(self, tiles: "ArrayLike | torch.Tensor") -> "torch.Tensor":
        """The probabilities of `classes`; of an encoder the embeddings.

        Args:
            tiles: uint8 in 0..255, [B, 3, S, S] or [B, S, S, 3], or one tile without B; S is `card.tile_px`, at
                `card.tile_mpp` microns per pixel, or `card.size_px`.

        Returns:
            float32 [B, K] of a classifier, [B, K, S, S] of a segmenter, [B, D] of an encoder, on the CPU.

        Raises:
            InputError: the array has another shape, or other values.
        """
        import torch

        outputs, pixels = self.card.outputs, self._pixels(tiles)
        with torch.inference_mode():
            if outputs.kind == "encoder":
                return self._run(pixels).cpu()
            if not outputs.dense:
                return outputs.probabilities(self._run(pixels)).cpu()
            found = outputs.probabilities(self._pixel_logits(pixels))
        if outputs.boundary:  # whose probability belongs to the likeliest class that it bounds
            share = found[:, -1:] * (found[:, 1:-1] == found[:, 1:-1].max(1, keepdim=True).values)
            found = torch.cat([found[:, :1], found[:, 1:-1] + share], 1)
        return found.cpu()

    def decide(self, tiles: "ArrayLike | torch.Tensor") -> list[tuple[str, ...]]:
        """The names of the classes of each tile, one unless the classes are labels that go together.

        Raises:
            InputError: the model is no classifier, or as `predict`.
        """
        outputs = self.card.outputs
        if outputs.kind != "classification":
            raise InputError(
                f"the model is of kind {outputs.kind}, and decide is for classifiers; use predict.",
                code="option-not-applicable",
            )
        found = self.predict(tiles)
        return [outputs.names(each > 0.5 if outputs.multi_label else each.argmax()) for each in found]

    def find_objects(self, tiles: "ArrayLike | torch.Tensor", min_um2: float = 10.0) -> "list[Instances]":
        """The objects of each tile, such as nuclei: which pixels are whose, their classes and probabilities.

        Args:
            tiles: as `predict` takes them.
            min_um2: smallest area of an object in square microns; smaller ones are left out.

        Raises:
            InputError: the model is no segmenter, or as `predict`.

        Examples:
            >>> model.find_objects(tiles)[0].labels  # int32 [S, S]: 0 outside of all, n + 1 for object n
        """
        import torch

        from histill.config.objects import Objects
        from histill.evaluate.object_counts import find_objects

        if not self.card.outputs.dense:
            raise InputError(
                f"the model is of kind {self.card.kind}, and find_objects is for segmenters; use predict.",
                code="option-not-applicable",
            )
        pixels = self._pixels(tiles)
        mpp = self.card.tile_mpp * self.card.tile_px / pixels.shape[-1]
        with torch.inference_mode():
            logits = self._pixel_logits(pixels)
        return find_objects(logits, self.card.outputs, mpp, Objects(min_um2=min_um2))

    def embed(self, tiles: "ArrayLike | torch.Tensor") -> "torch.Tensor":
        """The embeddings, float32 [B, D] on the CPU, of tiles as `predict` takes them.

        Of a classifier these are the features that its last layer sees, of a segmenter the mean of its encoder's last
        feature map.
        """
        import torch

        from histill.models.encoders import embed
        from histill.models.resample import resize_tiles

        with torch.inference_mode():
            seen = resize_tiles(self._pixels(tiles), self.card.size_px)
            return _ask(partial(embed, self.network), seen).cpu()

    def _pixel_logits(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """A segmenter's logits, float32 [B, K, S, S], at the size of `pixels`."""
        from histill.models.resample import resize_logits

        return resize_logits(self._run(pixels), pixels.shape[-1])

    def _run(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Logits or embeddings, float32, for float pixels at the tiles' side."""
        from histill.models.resample import resize_tiles

        seen = resize_tiles(pixels, self.card.size_px)
        if self.answer is not None and len(seen):
            return self.answer(seen)
        return _ask(self.network, seen).float()

    def _pixels(self, tiles: "ArrayLike | torch.Tensor") -> "torch.Tensor":
        """Float pixels [B, 3, S, S] in 0..255 on the network's device."""
        import numpy as np
        import torch

        found = tiles if isinstance(tiles, torch.Tensor) else torch.from_numpy(np.array(tiles))
        found = found[None] if found.ndim == 3 else found
        if found.ndim == 4 and found.shape[-1] == 3 != found.shape[1]:
            found = found.permute(0, 3, 1, 2)
        sides = {self.card.tile_px, self.card.size_px}
        if found.ndim != 4 or found.shape[1] != 3 or found.shape[2] != found.shape[3] or found.shape[3] not in sides:
            sizes = " or ".join(map(str, sorted(sides)))
            raise InputError(
                f"tiles have the shape {list(tiles.shape) if hasattr(tiles, 'shape') else list(found.shape)}; "
                f"[B, 3, S, S] or [B, S, S, 3] was expected, where S is {sizes}: cut or resize them to "
                f"{self.card.tile_px} px at {self.card.tile_mpp:g} um/px.",
                code="argument-wrong",
            )
        if found.dtype != torch.uint8:
            raise InputError(
                f"tiles are {found.dtype}; uint8 values in 0..255 were expected: give the pixels as read.",
                code="argument-wrong",
            )
        return found.to(next(self.network.parameters()).device).float()


def _ask(run: "Callable[[torch.Tensor], torch.Tensor]", tiles: "torch.Tensor") -> "torch.Tensor":
    """What a network answers; to no tiles too, which many cannot be asked about."""
    return run(tiles) if len(tiles) else run(tiles.new_zeros((1, *tiles.shape[1:])))[:0]
