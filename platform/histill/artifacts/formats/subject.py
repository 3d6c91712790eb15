"""What every format is made from: a model with its card, and the two programs that torch exports of it."""

import contextlib
import copy
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from histill.artifacts.formats.pooling import PoolingByProducts
from histill.artifacts.model_folder import ModelCard
from histill.cluster.progress import track
from histill.models.fake_quantization import list_layers, measure_layer_errors
from histill.storage.scratch import scratch_folder

INPUT, LOGITS, EMBEDDINGS = "pixels", "logits", "embeddings"
BATCH = "batch"  # the dimension of any size
_MOST_AT_ONCE = 4096
_TILES_OF_ERRORS = 16
_QUIET = threading.RLock()


@dataclass(frozen=True)
class Subject:
    """A model to be exported, on the CPU and in evaluation mode; formats made of the same one share its programs.

    `training_tiles`, float32 [N, 3, S, S] in 0..255, are what quantized formats are calibrated on.
    """

    model: nn.Module
    card: ModelCard
    training_tiles: Tensor | None = None

    @classmethod
    def copy_of(cls, model: nn.Module, card: ModelCard, training_tiles: Tensor | None = None) -> "Subject":
        """The subject of a copy, because `nn.Module.cpu` and `eval` would change the caller's module in place."""
        return cls(copy.deepcopy(model).cpu().eval(), card, training_tiles)

    @cached_property
    def layer_errors(self) -> dict[str, float]:
        """What quantizing each layer alone does to the outputs for training tiles, by its name in the model."""
        assert self.training_tiles is not None
        layers = len(list_layers(self.model))
        errors = measure_layer_errors(self.model, self.training_tiles[:_TILES_OF_ERRORS])
        return dict(track(errors, layers, title="rounding one layer at a time", unit="layers"))

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The program of torch.export, for any number of tiles."""
        side = self.card.size_px
        example = torch.zeros(2, 3, side, side)  # two: a batch of one would be specialized
        batch = torch.export.Dim(BATCH, min=1, max=_MOST_AT_ONCE)
        with quiet_exporters(), PoolingByProducts():
            return torch.export.export(self.model, (example,), dynamic_shapes=({0: batch},))

    @cached_property
    def onnx(self) -> bytes:
        """The ONNX file, with its weights inside and a dynamic batch size."""
        with quiet_exporters(), scratch_folder() as folder:
            path = os.path.join(folder, "model.onnx")
            graph = torch.onnx.export(
                self.program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[name_output(self.card)],
                verbose=False,
            )
            assert graph is not None
            graph.save(path)
            return _name_batch(path)


def name_output(card: ModelCard) -> str:
    """The name of what a format returns."""
    return EMBEDDINGS if card.kind == "encoder" else LOGITS


def _name_batch(path: str) -> bytes:
    """The ONNX file at `path` with its dynamic dimension called `batch`: torch names it by a symbol such as s96."""
    import onnx

    model = onnx.load(path)
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if symbol in dimension.dim_param:
                dimension.dim_param = dimension.dim_param.replace(symbol, BATCH)
    return model.SerializeToString()


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Silence the exporters' warnings and logs, which no user can act on; threads that export do so one by one.

    Both are of the whole process: exports that overlap would restore each other's silence.
    """
    with _QUIET:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)
