"""A nuclei teacher as an `.onnx` file whose answers are those of a published method, with a card of what is what.

HoVer-Net, StarDist, Cellpose, or any network that numbers its objects itself, such as InstanSeg as it is exported. The
method's own post-processing finds the nuclei of a tile; the response is what students learn from: a logit for each
pixel and class, and of a boundary between nuclei where the card names that class.
"""

from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch

from histill.config.common import Storage
from histill.errors import InputError
from histill.licenses import License
from histill.outputs import OutputSpec
from histill.teachers.nuclei_answers import find_boundary, find_nuclei
from histill.teachers.onnx_network import open_session, read_card, runtime_errors
from histill.teachers.onnx_nuclei_card import ROLES, OnnxNucleiCard

KEY = "teacher.onnx_nuclei"
_FLOOR = 1e-6  # lower bound of probabilities before the logarithm


@dataclass(frozen=True)
class OnnxNucleiTeacher:
    """A method's network run by ONNX Runtime over windows of a tile, whatever the tile's side."""

    uri: str
    session: onnxruntime.InferenceSession
    card: OnnxNucleiCard
    digest: str
    features: None = None

    @classmethod
    def load(cls, uri: str, storage: Storage, *, gpu: bool = False) -> "OnnxNucleiTeacher":
        """Load the `.onnx` file at `uri` and the card next to it.

        Raises InputError as `open_session` does, and when the network does not answer what the card says.
        """
        card = read_card(OnnxNucleiCard, uri, storage, KEY)
        session, digest = open_session(uri, card, storage, KEY, gpu=gpu)
        teacher = cls(uri, session, card, digest)
        teacher._check_outputs()
        teacher._check_answer()
        return teacher

    @property
    def outputs(self) -> OutputSpec:
        return self.card.spec

    @property
    def license(self) -> License | None:
        return self.card.license

    @property
    def mpp(self) -> float:
        return self.card.tile_mpp

    def sees(self, side_px: int) -> int:
        """The side unchanged: windows cover a tile of any side.

        Raises InputError where the network numbers its objects, and a tile would need several windows.
        """
        if self.card.method == "labels" and side_px > self.card.step_px:
            raise InputError(
                f"teacher {self.uri} numbers the nuclei of {self.card.step_px} px and a tile or window has {side_px}; "
                "export it with a larger window, or cut smaller tiles.",
                code="size-does-not-fit",
            )
        return side_px

    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, K, S, S], for tiles or windows, uint8 [B, 3, S, S]."""
        self.sees(tiles.shape[-1])
        answers = [self._respond(tile) for tile in tiles.cpu().numpy()]
        return torch.from_numpy(np.stack(answers)).to(tiles.device)

    def _respond(self, tile: np.ndarray) -> np.ndarray:
        """Logits, float32 [K, S, S], of one tile, uint8 [3, S, S]."""
        labels, nucleus, types = find_nuclei(self._answer(tile), self.card, tile.shape[-1])
        probabilities = [1 - nucleus, *(nucleus * types)]
        if self.outputs.boundary:
            zone = find_boundary(labels, self.card.boundary_px)
            probabilities = [probabilities[0], *(np.where(zone, 0, each) for each in probabilities[1:])]
            probabilities.append(np.where(zone, nucleus, 0))
        logits: np.ndarray = np.log(np.maximum(np.stack(probabilities), _FLOOR)).astype(np.float32)
        return logits

    def _answer(self, tile: np.ndarray) -> dict[str, np.ndarray]:
        """Each role's answer, float32 [C, h, w], for all of a tile at the card's stride."""
        card, side = self.card, tile.shape[-1]
        count = -(-side // card.step_px)
        after = count * card.step_px - side + card.margin_px
        pixels = np.pad(_normalize(tile, card), ((0, 0), *[(card.margin_px, after)] * 2), mode="reflect")
        starts = [(y * card.step_px, x * card.step_px) for y in range(count) for x in range(count)]
        windows = np.stack([pixels[:, y : y + card.window_px, x : x + card.window_px] for y, x in starts])
        whole = -(-side // card.stride)
        return {
            role: _lay_out(answer, count)[:, :whole, :whole] for role, answer in self._answer_windows(windows).items()
        }

    def _answer_windows(self, windows: np.ndarray) -> dict[str, np.ndarray]:
        """Each role's answer, float32 [B, C, h, w], without margins, for windows, float32 [B, 3, S, S]."""
        given = self.session.get_inputs()[0]
        if self.card.channels_last:
            windows = np.ascontiguousarray(windows.transpose(0, 2, 3, 1))
        parts = np.split(windows, len(windows)) if given.shape[0] == 1 else [windows]
        names = list(self.card.outputs.values())
        with runtime_errors(f"teacher {self.uri} cannot answer windows of {self.card.window_px} px"):
            answers = [self.session.run(names, {given.name: part}) for part in parts]
        joined = (np.concatenate(each).astype(np.float32, copy=False) for each in zip(*answers, strict=True))
        return {role: self._trim(answer, role) for role, answer in zip(self.card.outputs, joined, strict=True)}

    def _trim(self, answer: np.ndarray, role: str) -> np.ndarray:
        """Without margins, of which a network may leave out a part by itself; channels first.

        Raises InputError when the answer is of another form than the card says.
        """
        card = self.card
        if answer.ndim == 3:
            answer = answer[:, None]
        elif answer.ndim == 4 and card.channels_last:
            answer = answer.transpose(0, 3, 1, 2)
        side = card.step_px // card.stride
        more = answer.shape[-1] - side
        if answer.ndim != 4 or answer.shape[2] != answer.shape[3] or more < 0 or more % 2:
            raise InputError(
                f"{self.uri} answers {list(answer.shape)} as {card.outputs[role]!r} to windows of {card.window_px} px; "
                f"{side} px or more were expected by margin_px {card.margin_px} and stride {card.stride} of its card; "
                "correct the card.",
                code="onnx-unusable",
            )
        return answer[:, :, more // 2 : more // 2 + side, more // 2 : more // 2 + side]

    def _check_outputs(self) -> None:
        there = [each.name for each in self.session.get_outputs()]
        inputs = self.session.get_inputs()
        for role, name in self.card.outputs.items():
            if name not in there:
                raise InputError(
                    f"{self.uri} has no output {name!r}, which its card names as {role}; it has {', '.join(there)}.",
                    code="onnx-unusable",
                )
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            raise InputError(
                f"{self.uri} takes {', '.join(f'{each.name} ({each.type})' for each in inputs)}; one input of float32 "
                "images was expected; export it again.",
                code="onnx-unusable",
            )

    def _check_answer(self) -> None:
        card = self.card
        black = np.zeros((1, 3, card.window_px, card.window_px), np.float32)
        for role, answer in self._answer_windows(black).items():
            expected = 1 + len(card.types) if role == "types" else ROLES[card.method][role].channels
            if expected is not None and answer.shape[1] != expected:
                raise InputError(
                    f"{self.uri} answers {answer.shape[1]} channels as {card.outputs[role]!r}, and {expected} were "
                    f"expected of {role} for the classes {', '.join(card.classes)}; correct its card.",
                    code="onnx-unusable",
                )
            if not np.isfinite(answer).all():
                raise InputError(
                    f"{self.uri} answers a black tile with nan or infinity; export it again in float32.",
                    code="output-not-finite",
                )


def load_teacher(uri: str, _tile_mpp: float, storage: Storage, *, gpu: bool = False) -> OnnxNucleiTeacher:
    """`OnnxNucleiTeacher.load`."""
    return OnnxNucleiTeacher.load(uri, storage, gpu=gpu)


def _normalize(tile: np.ndarray, card: OnnxNucleiCard) -> np.ndarray:
    """float32 [3, S, S] for a tile, uint8 [3, S, S]."""
    pixels = tile.astype(np.float32)
    if card.percentiles is not None:
        low, high = np.percentile(pixels, card.percentiles, axis=(1, 2), keepdims=True)
        return ((pixels - low) / np.maximum(high - low, 1)).astype(np.float32)
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (card.mean, card.std))
    normalized: np.ndarray = (pixels / 255 - mean) / std
    return normalized


def _lay_out(parts: np.ndarray, count: int) -> np.ndarray:
    """[C, count * h, count * w] of parts [count * count, C, h, w], row by row."""
    _, channels, height, width = parts.shape
    grid = parts.reshape(count, count, channels, height, width).transpose(2, 0, 3, 1, 4)
    return grid.reshape(channels, count * height, count * width)
