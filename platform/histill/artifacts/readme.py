"""Write the README of an exported model."""

import json
from collections.abc import Mapping
from typing import Any

from histill.artifacts.checksums import CHECKSUMS_NAME
from histill.artifacts.formats.subject import INPUT, name_output
from histill.artifacts.interface import PREPARE_NAME
from histill.artifacts.model_folder import ModelCard
from histill.cluster.progress import count_of

README_NAME = "README.md"


def write_readme(card: ModelCard, told: Mapping[str, Any], figures: Mapping[str, float], scored_on: str) -> str:
    """The human-readable model card in Markdown: the model, its inputs and outputs, and its scores, if any."""
    activation = told["output"]["activation"]
    probabilities = f", {activation} gives probabilities" if activation else ""
    lines = [
        "# An encoder of tiles"
        if card.kind == "encoder"
        else f"# A {'segmenter' if card.outputs.dense else 'classifier'} of {', '.join(card.classes)}",
        "",
        f"- network: {card.encoder}, for H&E tiles at {card.mpp:.4g} um/px",
        f"- input: `{INPUT}`, float32 [batch, 3, {card.size_px}, {card.size_px}], RGB 0 to 255, from tiles of "
        f"{card.tile_px} px at {card.tile_mpp:.4g} um/px by `{PREPARE_NAME}`; normalization is inside",
        f"- output: `{name_output(card)}`, float32 {json.dumps(told['output']['shape'])}{probabilities}",
        f"- license: {told['license'] or 'not stated'}",
        *(f"- taught by: {_name_license(each)}" for each in told["taught_by"]),
        f"- trained on tiles {card.tiles_digest}, of {count_of(len(card.train_cases), 'case')}",
        f"- teacher: {card.teacher_name}",
        f"- model: {told['model_digest']}, histill {card.histill}",
        "",
        *_list_figures(figures, scored_on),
        "Formats, with the largest difference of their answers from the model's within histill, on real tiles",
        f"prepared from their bytes by `{PREPARE_NAME}` (it needs numpy, OpenCV and simplejpeg):",
        "",
        "- `model.safetensors` with `model.json`: for further training",
        *(f"- `{name}`: {value:.2g}" for name, value in told["largest_difference"].items()),
        *(f"- no {name}: {made['skipped']}" for name, made in told["formats"].items() if "skipped" in made),
        "",
        *_list_checksums(told["sha256"]),
        "Research software: not a medical device, and not tested for diagnosis.",
    ]
    return "\n".join(lines) + "\n"


def _list_figures(figures: Mapping[str, float], scored_on: str) -> list[str]:
    if not figures:
        return []
    return [
        f"On {scored_on}:",
        "",
        *(f"- {name.replace('_', ' ')}: {value:.4f}" for name, value in figures.items()),
        "",
    ]


def _list_checksums(sha256: Mapping[str, str]) -> list[str]:
    if not sha256:
        return []
    told = f"SHA-256 of the files; `sha256sum --check --ignore-missing {CHECKSUMS_NAME}` compares them, and this page:"
    return [told, "", *(f"- `{path}`: {digest}" for path, digest in sha256.items()), ""]


def _name_license(teacher: Mapping[str, Any]) -> str:
    """One of `taught_by` of the interface, in words."""
    license, use = teacher["license"], {True: "allowed", False: "forbidden", None: "not on record"}
    if license is None:
        return f"{teacher['name']}, whose license is not on record"
    commercial = use[license["commercial"]]
    return f"{teacher['name']}, {license['name']}, commercial use of this model {commercial} ({license['source']})"
