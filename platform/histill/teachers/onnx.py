"""An ONNX teacher: a segmentation network as an `.onnx` file, with a JSON card of its inputs and outputs."""

import contextlib
import hashlib
import logging
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnxruntime
import torch
from pydantic import Field

from histill.config.common import Storage
from histill.errors import InputError
from histill.models.resample import resize_logits, resize_tiles
from histill.outputs import OutputSpec
from histill.storage.records import Record, read_record
from histill.teachers.onnx_weights import read_graph
from histill.teachers.sides import teacher_input_px

SUFFIX = ".onnx"
_FLOOR = 1e-6  # lower bound of probabilities before the logarithm
_Above0 = Annotated[float, Field(gt=0)]
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_LOG = logging.getLogger(__name__)


class OnnxCard(Record):
    """The network's inputs and outputs; stored next to `teacher.onnx` as `teacher.json`."""

    noun: ClassVar[str] = "the card of an ONNX teacher"
    remedy: ClassVar[str] = "it has the keys classes, tile_mpp, tile_px, size_px, mean, std and output"

    classes: tuple[str, ...] = Field(min_length=2, description="names of the output channels, background first")
    tile_mpp: float = Field(gt=0, allow_inf_nan=False, description="microns per pixel of the tiles it was trained on")
    tile_px: int = Field(ge=1, description="side of these tiles in pixels")
    size_px: int = Field(ge=1, description="the network's input size for a whole tile, in pixels")
    mean: tuple[float, float, float] = Field(description="mean of RGB in 0..1, subtracted before the network")
    std: tuple[_Above0, _Above0, _Above0] = Field(description="standard deviation of RGB in 0..1; above 0")
    output: Literal["logits", "probabilities"] = Field(
        description="content of the output channels; a single channel is the second of two classes, before or after "
        "its sigmoid"
    )


@dataclass(frozen=True)
class OnnxTeacher:
    """A network run by ONNX Runtime; it sees windows at the same resolution as whole tiles."""

    uri: str
    session: onnxruntime.InferenceSession
    card: OnnxCard
    digest: str
    features: None = None

    @classmethod
    def load(cls, uri: str, storage: Storage, *, gpu: bool = False) -> "OnnxTeacher":
        """Load the `.onnx` file at `uri` and the card next to it.

        The weights must be inside, or in one file of the same folder, such as `teacher.onnx.data`.

        Raises InputError when a file is missing, when weights are stored anywhere else, or when the network's inputs
        and outputs do not match the card.
        """
        card = read_card(uri, storage)
        try:
            graph = read_graph(uri, storage)
        except FileNotFoundError:
            raise InputError(f"{uri} is missing; set teacher.onnx to an {SUFFIX} file.") from None
        with _runtime_errors(f"{uri} cannot be loaded; export it again"):
            session = onnxruntime.InferenceSession(graph.data, _options(graph.weights), providers=_providers(uri, gpu))
        _check_input(uri, session, card)
        digest = hashlib.sha256(card.model_dump_json().encode() + graph.data)
        for weights in graph.weights.values():
            digest.update(hashlib.sha256(weights).digest())
        teacher = cls(uri, session, card, digest.hexdigest())
        teacher._check_answer()
        return teacher

    @property
    def outputs(self) -> OutputSpec:
        return OutputSpec("segmentation", self.card.classes)

    @property
    def mpp(self) -> float:
        return self.card.tile_mpp

    def sees(self, side_px: int) -> int:
        """The network's input size for a tile or window of `side_px`.

        Raises InputError when it is not a whole number, or not the fixed input size of the graph.
        """
        side = teacher_input_px(side_px, self.card.tile_px, self.card.size_px, self.uri)
        if any(isinstance(fixed, int) and fixed != side for fixed in self._input.shape[2:]):
            raise InputError(
                f"teacher {self.uri} takes {self.card.size_px} px only and would see a tile or window of {side_px} px "
                f"at {side}; use tiles of {self.card.tile_px} px without data.augment.crop_px, or cache its responses."
            )
        return side

    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, K, S, S], for tiles or windows, uint8 [B, 3, S, S]."""
        answer = torch.from_numpy(self._answers(tiles, self.sees(tiles.shape[-1])))
        return resize_logits(_as_logits(answer, self.card), tiles.shape[-1]).to(tiles.device)

    @property
    def _input(self) -> Any:
        return self.session.get_inputs()[0]

    def _answers(self, tiles: torch.Tensor, side_px: int) -> np.ndarray:
        """The network's raw output, float32 [B, C, H, W], for tiles resized to `side_px`."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.card.mean, self.card.std))
        pixels = ((resize_tiles(tiles, side_px).cpu() / 255 - mean) / std).numpy()
        parts = np.split(pixels, len(pixels)) if self._input.shape[0] == 1 else [pixels]
        with _runtime_errors(f"teacher {self.uri} cannot answer {len(parts[0])} tiles of {side_px} px"):
            answers = [self.session.run(None, {self._input.name: part})[0] for part in parts]
        return np.concatenate(answers).astype(np.float32, copy=False)

    def _check_answer(self) -> None:
        """Run two black tiles: two, since some exports declare a dynamic batch but accept only one tile."""
        side, classes = self.card.size_px, len(self.card.classes)
        answer = self._answers(torch.zeros(2, 3, side, side, dtype=torch.uint8), side)
        channels = (1, classes) if classes == 2 else (classes,)
        sound = answer.ndim == 4 and len(answer) == 2 and answer.shape[2] == answer.shape[3]
        if not sound or answer.shape[1] not in channels:
            raise InputError(
                f"{self.uri} answers {list(answer.shape)} for 2 tiles of {side} px; [2, {classes}, side, side] was "
                f"expected, for the classes {', '.join(self.card.classes)} of its card."
            )
        if not np.isfinite(answer).all():
            raise InputError(f"{self.uri} answers a black tile with nan or infinity; export it again in float32.")
        declared, held = self.card.output, _kind(answer)
        if held != declared and not (answer.shape[1] == 1 and declared == "logits"):  # a logit may lie in 0..1
            raise InputError(
                f"{self.uri} answers {held} and its card says output {declared!r}; correct {card_uri(self.uri)}."
            )


def load_teacher(uri: str, _tile_mpp: float, storage: Storage, *, gpu: bool = False) -> OnnxTeacher:
    """`OnnxTeacher.load`."""
    return OnnxTeacher.load(uri, storage, gpu=gpu)


def card_uri(uri: str) -> str:
    """The URI of the card of the `.onnx` file at `uri`."""
    return uri.removesuffix(SUFFIX) + ".json"


def read_card(uri: str, storage: Storage) -> OnnxCard:
    """Read the card of the `.onnx` file at `uri`. Raises InputError when it is missing or invalid."""
    if not uri.endswith(SUFFIX):
        raise InputError(f"teacher.onnx is {uri}; an {SUFFIX} file was expected, with a .json card beside it.")
    where = card_uri(uri)
    try:
        return read_record(OnnxCard, where, storage)
    except FileNotFoundError:
        raise InputError(f"{where} is missing, the card that an ONNX teacher needs; {OnnxCard.remedy}.") from None


def _as_logits(answer: torch.Tensor, card: OnnxCard) -> torch.Tensor:
    """Logits [B, K, H, W] from the network's output: [B, K, H, W], or [B, 1, H, W] for two classes."""
    single = answer.shape[1] == 1
    if card.output == "probabilities":
        return (torch.cat([1 - answer, answer], dim=1) if single else answer).clamp_min(_FLOOR).log()
    return torch.cat([torch.zeros_like(answer), answer], dim=1) if single else answer


def _kind(answer: np.ndarray) -> str:
    """Whether `answer` is logits or probabilities: these are in 0..1 and, with several channels, sum to 1."""
    slack = 1e-3
    within = answer.min() >= -slack and answer.max() <= 1 + slack
    adds_up = answer.shape[1] == 1 or bool(np.abs(answer.sum(axis=1) - 1).max() <= slack)
    return "probabilities" if within and adds_up else "logits"


def _check_input(uri: str, session: onnxruntime.InferenceSession, card: OnnxCard) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            f"{uri} has {len(inputs)} inputs and {len(outputs)} outputs ({', '.join(o.name for o in outputs)}); "
            "export it with one of each: tiles and the answer for each pixel."
        )
    shape = inputs[0].shape
    wanted = (1, 3, card.size_px, card.size_px)
    fits = len(shape) == 4 and all(
        not isinstance(given, int) or given == side for given, side in zip(shape, wanted, strict=True)
    )
    if inputs[0].type != "tensor(float)" or not fits:
        raise InputError(
            f"{uri} takes {inputs[0].type} {shape}; float32 [batch, 3, {card.size_px}, {card.size_px}] was expected by "
            f"its card's size_px; export it with that or a dynamic side, and a batch that is dynamic or 1."
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
def _runtime_errors(sentence: str) -> Iterator[None]:
    """Convert ONNX Runtime's errors, which share only a module but no base class, to InputError."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = textwrap.shorten(str(error), 200, placeholder=" ...").rstrip(".")
        raise InputError(f"{sentence} ({reason}).") from None
