"""Run an `.onnx` file that takes tiles and gives one answer, with a JSON card of its inputs and outputs beside it."""

import contextlib
import hashlib
import logging
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import onnxruntime
import torch

from histill.config.common import Storage
from histill.errors import InputError
from histill.models.resample import resize_tiles
from histill.storage.records import Record, read_record
from histill.teachers.onnx_weights import read_graph
from histill.teachers.sides import teacher_input_px

SUFFIX = ".onnx"
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_LOG = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


class Card(Protocol):
    """What a digest needs of any card."""

    def model_dump_json(self, *, exclude: set[str]) -> str: ...


class InputCard(Card, Protocol):
    """What a card says of the tiles that a network with one answer is fed with."""

    @property
    def tile_px(self) -> int: ...
    @property
    def size_px(self) -> int: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...


@dataclass(frozen=True)
class OnnxNetwork:
    """A network run by ONNX Runtime; it sees windows at the same resolution as whole tiles."""

    uri: str
    session: onnxruntime.InferenceSession
    card: InputCard
    digest: str  # SHA-256 over card (without its license), graph and weights

    @classmethod
    def load(cls, uri: str, card: InputCard, storage: Storage, key: str, *, gpu: bool = False) -> "OnnxNetwork":
        """Load the `.onnx` file at `uri`, which the configuration names by `key`.

        The weights must be inside, or in one file of the same folder, such as `teacher.onnx.data`.

        Raises InputError when a file is missing, when weights are stored anywhere else, or when the network does not
        take what the card says.
        """
        session, digest = open_session(uri, card, storage, key, gpu=gpu)
        _check_input(uri, session, card)
        return cls(uri, session, card, digest)

    def sees(self, side_px: int) -> int:
        """The network's input size for a tile or window of `side_px`.

        Raises InputError when it is not a whole number, or not the fixed input size of the graph.
        """
        side = teacher_input_px(side_px, self.card.tile_px, self.card.size_px, self.uri)
        if any(isinstance(fixed, int) and fixed != side for fixed in self._input.shape[2:]):
            raise InputError(
                f"teacher {self.uri} takes {self.card.size_px} px only and would see a tile or window of {side_px} px "
                f"at {side}; use tiles of {self.card.tile_px} px without data.augment.crop_px, or cache its responses.",
                code="size-does-not-fit",
            )
        return side

    def answer(self, tiles: torch.Tensor, side_px: int) -> np.ndarray:
        """The network's raw output, float32 [B, ...], for tiles, uint8 [B, 3, S, S], resized to `side_px`."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.card.mean, self.card.std))
        pixels = ((resize_tiles(tiles, side_px).cpu() / 255 - mean) / std).numpy()
        parts = np.split(pixels, len(pixels)) if self._input.shape[0] == 1 else [pixels]
        with runtime_errors(f"teacher {self.uri} cannot answer {len(parts[0])} tiles of {side_px} px"):
            answers = [self.session.run(None, {self._input.name: part})[0] for part in parts]
        return np.concatenate(answers).astype(np.float32, copy=False)

    def answer_black(self) -> np.ndarray:
        """The output for two black tiles: two, since some exports declare a dynamic batch but accept only one tile.

        Raises InputError when it holds nan or infinity.
        """
        side = self.card.size_px
        answer = self.answer(torch.zeros(2, 3, side, side, dtype=torch.uint8), side)
        if not np.isfinite(answer).all():
            raise InputError(
                f"{self.uri} answers a black tile with nan or infinity; export it again in float32.",
                code="output-not-finite",
            )
        return answer

    @property
    def _input(self) -> Any:
        return self.session.get_inputs()[0]


def open_session(
    uri: str, card: Card, storage: Storage, key: str, *, gpu: bool = False
) -> tuple[onnxruntime.InferenceSession, str]:
    """Open the `.onnx` file at `uri`; with the SHA-256 over its card (without its license), graph and weights.

    Raises InputError when a file is missing, or when weights are stored neither inside nor in one file beside it.
    """
    try:
        graph = read_graph(uri, storage)
    except FileNotFoundError:
        raise InputError(f"{uri} is missing; set {key} to an {SUFFIX} file.", code="weights-missing") from None
    with runtime_errors(f"{uri} cannot be loaded; export it again"):
        session = onnxruntime.InferenceSession(graph.data, _options(graph.weights), providers=_providers(uri, gpu))
    digest = hashlib.sha256(card.model_dump_json(exclude={"license"}).encode() + graph.data)
    for weights in graph.weights.values():
        digest.update(hashlib.sha256(weights).digest())
    return session, digest.hexdigest()


def card_uri(uri: str) -> str:
    """The URI of the card of the `.onnx` file at `uri`."""
    return uri.removesuffix(SUFFIX) + ".json"


def read_card(kind: type[R], uri: str, storage: Storage, key: str) -> R:
    """Read the card of the `.onnx` file at `uri`, which the configuration names by `key`.

    Raises InputError when it is missing or invalid.
    """
    if not uri.endswith(SUFFIX):
        raise InputError(
            f"{key} is {uri}; an {SUFFIX} file was expected, with a .json card beside it.", code="weights-missing"
        )
    where = card_uri(uri)
    try:
        return read_record(kind, where, storage)
    except FileNotFoundError:
        needed = kind.noun.removeprefix("the card of ")
        raise InputError(
            f"{where} is missing, the card that {needed} needs; {kind.remedy}.", code="weights-missing"
        ) from None


def _check_input(uri: str, session: onnxruntime.InferenceSession, card: InputCard) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            f"{uri} has {len(inputs)} inputs and {len(outputs)} outputs ({', '.join(o.name for o in outputs)}); "
            "export it with one of each: tiles and their answer.",
            code="onnx-unusable",
        )
    shape = inputs[0].shape
    wanted = (1, 3, card.size_px, card.size_px)
    fits = len(shape) == 4 and all(
        not isinstance(given, int) or given == side for given, side in zip(shape, wanted, strict=True)
    )
    if inputs[0].type != "tensor(float)" or not fits:
        raise InputError(
            f"{uri} takes {inputs[0].type} {shape}; float32 [batch, 3, {card.size_px}, {card.size_px}] was expected by "
            f"its card's size_px; export it with that or a dynamic side, and a batch that is dynamic or 1.",
            code="onnx-unusable",
        )


def _options(weights: Mapping[str, bytes]) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    if weights:
        sizes = [len(data) for data in weights.values()]
        options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes)
    options.intra_op_num_threads = torch.get_num_threads()  # the worker's share of the node
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other threads decode tiles meanwhile
    options.log_severity_level = 4  # errors are raised as well
    return options


def _providers(uri: str, gpu: bool) -> list[str]:
    if gpu and _CUDA not in onnxruntime.get_available_providers():
        _LOG.warning("teacher %s answers on the CPU: onnxruntime-gpu is not installed.", uri)
        return [_CPU]
    return [_CUDA, _CPU] if gpu else [_CPU]


@contextlib.contextmanager
def runtime_errors(sentence: str) -> Iterator[None]:
    """Convert ONNX Runtime's errors, which share only a module but no base class, to InputError."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = textwrap.shorten(str(error), 200, placeholder=" ...").rstrip(".")
        raise InputError(f"{sentence} ({reason}).", code="onnx-unusable") from None
