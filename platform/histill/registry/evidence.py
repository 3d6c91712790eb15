"""The files beside a version's model, by path: what it was judged by, and what other programs open."""

import json
from collections.abc import Mapping

from histill.artifacts.model_folder import ONNX_NAME

EXPORTS_FOLDER = "exports"
SCORE_PATH = "score.json"
PICTURE_PATH = "pictures/comparison.png"


def find_onnx(evidence: Mapping[str, bytes]) -> bytes | None:
    """The ONNX file; None if the version has none."""
    return evidence.get(f"{EXPORTS_FOLDER}/{ONNX_NAME}")


def read_license(evidence: Mapping[str, bytes]) -> str | None:
    """The license of the weights, if it was stated."""
    from histill.artifacts.interface import INTERFACE_NAME  # loads torch

    interface = evidence.get(f"{EXPORTS_FOLDER}/{INTERFACE_NAME}")
    return None if interface is None else json.loads(interface)["license"]


def read_figures(evidence: Mapping[str, bytes]) -> dict[str, float]:
    """The figures of the score as metrics, such as `test/dice`; without those that are not a number."""
    if SCORE_PATH not in evidence:
        return {}
    score = json.loads(evidence[SCORE_PATH])
    return {f"{score['split']}/{name}": value for name, value in score["figures"].items() if value is not None}
