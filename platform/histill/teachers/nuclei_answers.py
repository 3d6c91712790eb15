"""The nuclei of a tile from the answers of a network, by its method's own post-processing."""

from collections.abc import Mapping

import numpy as np

from histill.objects.cellpose import SCALE, separate_cellpose
from histill.objects.hovernet import separate_hovernet
from histill.objects.instances import classify
from histill.objects.stardist import separate_stardist
from histill.teachers.onnx_nuclei_card import OnnxNucleiCard

Maps = Mapping[str, np.ndarray]
_LEAST = 1e-6  # of a type's probability


def find_nuclei(maps: Maps, card: OnnxNucleiCard, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nuclei of a tile, int32 [S, S] from 1; the probability of any, float [S, S]; of each type, [K', S, S].

    The types add up to 1; within a nucleus its own type has all.
    """
    types = np.ones((1, side, side), np.float32)
    match card.method:
        case "hovernet":
            nucleus = _activate(maps["nucleus"], card)[1]
            labels = separate_hovernet(nucleus, maps["distances"])
            if "types" in maps:
                types = np.maximum(_activate(maps["types"], card)[1:], _LEAST)
                types = types / types.sum(0)
        case "stardist":
            surely = maps["probability"][0] if card.activated else _sigmoid(maps["probability"][0])
            labels, found = separate_stardist(
                surely, maps["rays"], stride=card.stride, side=side, threshold=card.threshold
            )
            nucleus = np.concatenate([[0.0], found])[labels]
        case "cellpose":
            nucleus = _sigmoid(maps["flows"][2])
            labels = separate_cellpose(nucleus > 0.5, maps["flows"][:2] / SCALE)
        case "labels":
            labels = _number(maps["labels"][0], card.stride, side)
            nucleus = (labels > 0).astype(np.float32)
    if len(types) > 1 and labels.any():
        chosen = classify(labels, types).classes - 1
        own = np.arange(len(types))[:, None, None] == np.concatenate([[-1], chosen])[labels]
        types = np.where(labels > 0, own, types)
    return labels, nucleus, types


def _activate(answer: np.ndarray, card: OnnxNucleiCard) -> np.ndarray:
    """Probabilities of classes, [C, H, W], from what the network answers."""
    if card.activated:
        return answer
    powers = np.exp(answer - answer.max(0))
    probabilities: np.ndarray = powers / powers.sum(0)
    return probabilities


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    probabilities: np.ndarray = expit(logits)
    return probabilities


def _number(answer: np.ndarray, stride: int, side: int) -> np.ndarray:
    """Numbers of objects without gaps, int32 [side, side], from those that a network gives, [h, w]."""
    given = np.rint(answer).astype(np.int64).repeat(stride, 0).repeat(stride, 1)[:side, :side]
    numbers, labels = np.unique(np.maximum(given, 0), return_inverse=True)
    return (labels.reshape(given.shape) + (numbers[0] > 0)).astype(np.int32)


def find_boundary(labels: np.ndarray, width: int) -> np.ndarray:
    """bool [H, W]: the pixels of nuclei within `width` pixels of another one or of none; an image's edge is no end."""
    from scipy.ndimage import maximum_filter, minimum_filter

    side = 2 * width + 1
    near: np.ndarray = maximum_filter(labels, side) != minimum_filter(labels, side)
    return near & (labels > 0)
