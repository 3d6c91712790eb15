"""--help says the defaults that hold, as a validated configuration has them."""

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel

from histill.config.cache_responses import CacheConfig
from histill.config.describe_keys import describe_keys, format_keys
from histill.config.distill_student import DistillConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.keys import dotted_keys
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.runs import RunConfig
from histill.config.train_teacher import TeacherConfig
from histill.search.configs import SEARCHES

pytestmark = pytest.mark.unit

NEEDED: dict[str, Any] = {"name": "x", "runs": "/runs", "data": {"tiles": "/tiles"}}
TEACHER = {"classical": True}
GIVEN: list[tuple[type[RunConfig], str, dict[str, Any]]] = [
    (FinetuneConfig, "a pretrained classifier", {"target": "classification", "encoder": "/runs/a"}),
    (FinetuneConfig, "a classifier from scratch", {"target": "classification"}),
    (FinetuneConfig, "a segmenter", {"target": "segmentation"}),
    (TeacherConfig, "a segmenter", {}),
    (TeacherConfig, "a classifier", {"target": "classification"}),
    (PretrainConfig, "a teacher of pixels", {"teacher": TEACHER}),
    (PretrainConfig, "teachers of embeddings", {"embeddings": {"uni": {"responses": "/responses"}}}),
    (PretrainConfig, "both", {"teacher": TEACHER, "embeddings": {"uni": {"responses": "/responses"}}}),
    (DistillConfig, "", {"teacher": TEACHER}),
]


def default_in(lines: dict[str, str], key: str, kind: str) -> str | None:
    """The default of `key` in a run of `kind`; None: it has no line."""
    said = re.search(r"\((default|by the kind of run:) (.*)\)$", lines.get(key, ""))
    if said is None or said[1] == "default":
        return said and said[2]
    values = dict(reversed(each.split(" for ", 1)) for each in said[2].split("; "))
    return next(value for kinds, value in values.items() if kind in kinds.split(" or "))


@pytest.mark.parametrize(("model", "kind", "given"), GIVEN)
def test_the_default_of_each_key_is_the_one_that_holds(
    model: type[RunConfig], kind: str, given: dict[str, Any]
) -> None:
    config = validate(model, NEEDED | given, "test").model_dump(mode="json")
    lines = {line.split()[0]: line for line in map(str, describe_keys(model))}
    there = {"name", "runs", "data.tiles", "target", *given}
    for key in dotted_keys(model):
        if key in there or key.split(".")[0] in given:
            continue
        value: Any = config
        for part in key.split("."):
            value = value[part] if value is not None else None
        section = key.rpartition(".")[0]
        if default_in(lines, section, kind) == "null" or default_in(lines, section.rpartition(".")[0], kind) == "null":
            assert value is None, key
        else:
            assert default_in(lines, key, kind) == json.dumps(value), key


def test_the_learning_rate_of_fine_tuning_is_said_by_the_kind_of_run() -> None:
    line = next(line for line in map(str, describe_keys(FinetuneConfig)) if line.startswith("  optimizer.lr "))
    assert line.endswith(
        "(by the kind of run: 2e-05 for a pretrained classifier; 0.001 for a classifier from scratch or a segmenter)"
    )


def test_a_sweep_has_the_defaults_of_its_job() -> None:
    lines = [str(key) for key in describe_keys(SEARCHES.models["finetune_student"])]
    assert next(line for line in lines if line.startswith("  layer_decay ")).endswith(
        "(by the kind of run: 0.5 for a pretrained classifier; 1.0 for a classifier from scratch or a segmenter)"
    )


def test_a_section_with_a_default_of_its_own_is_described_by_that() -> None:
    line = next(line for line in map(str, describe_keys(CacheConfig)) if line.startswith("  augment.flips "))
    assert line.endswith("(default false)")


RUN = {"name", "runs", "data.tiles"}


@pytest.mark.parametrize(
    ("model", "required"),
    [
        (PretrainConfig, RUN),
        (FinetuneConfig, RUN | {"target"}),
        (SEARCHES.models["train_teacher"], RUN | {"space"}),
        (CacheConfig, {"tiles", "output"}),
    ],
)
def test_help_has_each_key_once_in_its_section_and_the_required_ones_first(
    model: type[BaseModel], required: set[str]
) -> None:
    text = format_keys(model, 100)
    assert max(map(len, text.splitlines())) <= 100
    names = {
        part.partition(":")[0]: re.findall(r"^  (\S+)", part, re.MULTILINE)
        for part in re.sub(r"\n    (?! )", " ", text).split("\n\n")
    }
    first, own, *sections = names
    assert (first, set(names[first]), own) == ("required", required, "of the command itself")
    assert sorted(name for part in names.values() for name in part) == sorted(key.name for key in describe_keys(model))
    for section in sections:
        assert {name.partition(".")[0] for name in names[section]} == {section}
