"""Whatever is given as a configuration or a name means what an independent reading says, or is refused in a sentence.

Over 500 cases a run. The independent reading is the table and the rules below (YAML 1.2's core schema, less what YAML
1.1 reads otherwise), and JSON, which is a part of YAML.
"""

import json
import math
import os
import re
import string
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from histill.config.base import Strict
from histill.config.cache_responses import CacheConfig
from histill.config.check_cluster import CheckConfig
from histill.config.convert_encoder import ConvertConfig
from histill.config.distill_student import DistillConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import load_config
from histill.config.predict_tiles import PredictConfig
from histill.config.pretrain_student import PretrainConfig
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import ScoreConfig
from histill.config.sync_metrics import SyncConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.predict.file_names import name_files
from histill.search.configs import DistillSearch, FinetuneSearch, PretrainSearch
from histill.storage.uris import join

pytestmark = pytest.mark.unit

REFUSED = object()
UNKNOWN_KEY = "data.unheard_of"
HELD_OUT: dict[str, Any] = {"tiles": "tiles"}
RUN: dict[str, Any] = {"name": "a", "runs": "runs", "data": {"tiles": "tiles"}}
TAUGHT: dict[str, Any] = {**RUN, "teacher": {"classical": True}}
JOBS: dict[type[Strict], dict[str, Any]] = {
    CacheConfig: {"tiles": "tiles", "teacher": {"classical": True}, "output": "out"},
    CheckConfig: {},
    ConvertConfig: {"weights": "w", "output": "o"},
    DistillConfig: TAUGHT,
    DistillSearch: {**TAUGHT, "space": {"loss.divergence.temperature": {"uniform": [1, 2]}}},
    FinetuneConfig: {**RUN, "target": "segmentation"},
    FinetuneSearch: {**RUN, "target": "classification", "space": {"optimizer.lr": {"uniform": [0.1, 0.2]}}},
    IngestConfig: {"output": "out", "images": {"index": "index.csv", "mpp": 0.5}},
    PredictConfig: {"model": "model", "tiles": "tiles", "output": "out"},
    PretrainConfig: TAUGHT,
    PretrainSearch: {**TAUGHT, "space": {"loss.soft_cross_entropy.temperature": {"uniform": [1, 2]}}},
    PromoteConfig: {"model": "model", "registered_name": "a", "held_out": HELD_OUT},
    ScoreConfig: {"model": "model", "held_out": HELD_OUT},
    SyncConfig: {"unsent": "unsent"},
    TeacherConfig: RUN,
}


def keys_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key and section, dotted."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        parts = () if get_origin(field.annotation) is dict else get_args(field.annotation)
        below = [each for each in (field.annotation, *parts) if _is_model(each)]
        found += [key for each in below for key in keys_of(each, f"{prefix}{name}.")]
    return found


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


KEYS = {job: [*keys_of(job), UNKNOWN_KEY] for job in JOBS}


# What a plain scalar means

AMBIGUOUS = [
    r"[-+]?0o?[0-9_]+",  # octal by YAML 1.1, or by 1.2
    r"[-+]?0b[01_]+",
    r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?",  # sixties
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}",  # a date
]
WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
    **dict.fromkeys((".inf", "+.inf", "-.inf", ".nan", ".NaN", ".Inf"), math.inf),  # which no key takes
    **dict.fromkeys(("=", "<<"), REFUSED),
}


def meaning(text: str) -> Any:
    """Of a plain scalar of letters, digits and harmless signs."""
    if text in WORDS:
        return WORDS[text]
    if any(re.fullmatch(pattern, text) for pattern in AMBIGUOUS):
        return REFUSED
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
        return int(text) if len(text) < 4000 else REFUSED
    if re.fullmatch(r"[-+]?0x[0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", text):
        return float(text)
    return text


def is_debated(text: str) -> bool:
    """Digits with `_` between them, which programs read in many ways: a sentence or any value will do."""
    return re.fullmatch(r"[-+.0-9xeEa-fA-F:]*_[-+.0-9xeEa-fA-F:_]*", text) is not None


PLAIN = st.one_of(
    st.sampled_from([word for word in WORDS if word not in ("", "~")]),
    st.from_regex(r"[-+]?[0-9]{1,3}([._:eE]?[-+]?[0-9]{1,3}){0,3}", fullmatch=True),
    st.from_regex(r"(19|20)[0-9]{2}-[0-1][0-9]-[0-3][0-9]", fullmatch=True),
    st.from_regex(r"0[xob]?[0-9a-f]{1,4}", fullmatch=True),
    st.text(string.ascii_letters + string.digits + "._/+-", min_size=1, max_size=12).filter(
        lambda text: text[0] not in "-" or text[1:2].isalnum()
    ),
).filter(lambda text: text not in ("---", "..."))
QUOTED = st.text(max_size=20)
NUMBERS = st.one_of(st.integers(-5, 5000), st.floats(allow_nan=False, allow_infinity=False), st.integers())
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, QUOTED),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(st.text(max_size=8), below, max_size=3)),
    max_leaves=5,
)


def refuse_or_load(job: type[Strict], path: Path | None, overrides: list[str]) -> Strict | None:
    """The configuration; None where it is refused in a sentence without a secret."""
    try:
        return load_config(job, None if path is None else str(path), overrides)
    except InputError as error:
        message = str(error)
        assert message.endswith((".", "?"))
        assert not re.search(r"[\n\r\x00-\x08]", message)
        assert "PLANTED" not in message
        assert "Traceback" not in message
        return None


def found_at(config: Strict, key: str) -> Any:
    value: Any = config.model_dump()
    for part in key.split("."):
        value = value[part]
    return value


def same(found: Any, expected: Any) -> bool:
    """Whether nothing that was given is lost or changed; a model adds its defaults, and whole numbers may be floats."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            key in found and same(found[key], each) for key, each in expected.items()
        )
    if isinstance(expected, list):
        return isinstance(found, tuple) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None:
        return found is expected
    return bool(found == expected) and isinstance(found, str) == isinstance(expected, str)


def without(data: dict[str, Any], key: str) -> dict[str, Any]:
    """`data` without what lies at `key`, so that an override does not meet it."""
    head, _, rest = key.partition(".")
    if not rest or not isinstance(data.get(head), dict):
        return {name: value for name, value in data.items() if name != head}
    return {**data, head: without(data[head], rest)}


def leaves(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted key and value of whatever is no mapping, and of a mapping with dotted keys."""
    found = []
    for name, value in data.items():
        plain = isinstance(value, dict) and value and not any("." in key for key in value)
        found += leaves(value, f"{prefix}{name}.") if plain else [(prefix + name, value)]
    return found


def nested(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: nested(rest, value) if rest else value}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return {**one, **other, **both}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "job.yaml"


def job_and_key() -> st.SearchStrategy[tuple[type[Strict], str]]:
    return st.sampled_from(list(JOBS)).flatmap(lambda job: st.tuples(st.just(job), st.sampled_from(KEYS[job])))


many = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@many
@given(job_and_key(), PLAIN, st.sampled_from(["override", "list", "file", "flow"]))
def test_plain_scalars_mean_what_they_say(file: Path, chosen: tuple[type[Strict], str], text: str, where: str) -> None:
    job, key = chosen
    expected: Any = meaning(text)
    if where == "list":
        expected = REFUSED if expected is REFUSED else [expected, "b"]
        text = f"[{text}, b]"
    base = without(JOBS[job], key)
    if where in ("override", "list"):
        file.write_text(json.dumps(base))
        config = refuse_or_load(job, file, [f"{key}={text}"])
    else:
        parts = key.split(".")
        block = "\n".join(f"{'  ' * depth}{part}:" for depth, part in enumerate(parts))
        flow = f"{{{': {'.join(parts)}: {text}{'}' * len(parts)}"
        file.write_text(f"{block} {text}\n" if where == "file" else flow)
        config = refuse_or_load(job, file, [f"{name}={json.dumps(value)}" for name, value in leaves(base)])
    if config is not None and not is_debated(text):
        assert expected is not REFUSED, text
        assert same(found_at(config, key), expected), (key, text, found_at(config, key))


@many
@given(job_and_key(), VALUES, st.booleans())
def test_json_means_what_it_says(file: Path, chosen: tuple[type[Strict], str], value: Any, ascii_only: bool) -> None:
    job, key = chosen
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert json.loads(text) == value
    data = merged(without(JOBS[job], key), nested(key, value))
    file.write_text(json.dumps(data, ensure_ascii=ascii_only), encoding="utf-8")
    by_file = refuse_or_load(job, file, [])
    file.write_text(json.dumps(without(JOBS[job], key)))
    by_override = refuse_or_load(job, file, [f"{key}={text}"])
    for config in (by_file, by_override):
        if config is not None:
            given_value = found_at(config, key)
            resolved = isinstance(value, str) and value.startswith(("~", "file:"))
            left_out = value is None and key.endswith(".weight") and given_value == 0  # null leaves a term out
            assert resolved or left_out or same(given_value, value), (key, value, given_value)
    assert (by_file is None) == (by_override is None)


SECRETS = st.sampled_from(
    [
        *("http://admin:PLANTED/word@host/x", "http://admin:PL@PLANTED@host", "https://host/x?token=PLANTED"),
        *("s3://KEY:PLANTED/+more@bucket/x", "s3://bucket/x?X-Amz-Signature=PLANTED", "postgresql://u:PLANTED@db/x"),
        *("http://host/?PLANTED", "user:PLANTED@host:5000", "aws_secret_access_key=PLANTED", "Bearer PLANTED"),
    ]
)


@many
@given(
    job_and_key(),
    SECRETS,
    st.sampled_from(["{}", "[{}]", "{{a: {}}}", "{{{}: 1}}", "[{}", "!{}", "*x {}", "'{}", "&a {}"]),
)
def test_no_sentence_tells_a_secret(file: Path, chosen: tuple[type[Strict], str], secret: str, form: str) -> None:
    job, key = chosen
    text = form.format(json.dumps(secret))
    file.write_text(json.dumps(without(JOBS[job], key)))
    for overrides in ([f"{key}={text}"], [f"{key}{text}=1"], [f"{secret}=1"], [secret], [f"{key}.{text}"]):
        refuse_or_load(job, file, overrides)
    file.write_text(f"{key.partition('.')[0]}:\n  {text}\n  b: 1\n")
    refuse_or_load(job, file, [])


@settings(many, max_examples=80)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), min_size=1), st.data())
def test_a_key_given_twice_is_refused_at_any_depth(file: Path, floors: dict[str, int], data: st.DataObject) -> None:
    """And the same mapping without the second one is read whole."""
    items = [f"{key}: {value}" for key, value in floors.items()]
    file.write_text("gates:\n  floors: {" + ", ".join(items) + "}\n")
    base = ["model=m", "registered_name=a", "held_out.tiles=t"]
    config = refuse_or_load(PromoteConfig, file, base)
    assert isinstance(config, PromoteConfig)
    assert config.gates.floors == floors
    again = data.draw(st.sampled_from(sorted(floors)))
    twice = data.draw(st.permutations([*items, f"{data.draw(st.sampled_from([again, repr(again)]))}: 1"]))
    text = data.draw(
        st.sampled_from(["gates: {floors: {%s}}", "gates:\n  floors:\n    %s", "gates: {floors: {%s},\n }"])
    )
    file.write_text(text % ("\n    " if "    %s" in text else ", ").join(twice))
    assert refuse_or_load(PromoteConfig, file, base) is None
    assert refuse_or_load(PromoteConfig, None, [*base, "gates.floors={" + ", ".join(twice) + "}"]) is None


NAMES = st.one_of(
    st.text(max_size=300),
    st.text(string.ascii_letters + string.digits + '._- /\\:*?"<>|~$%&\u202e\u200b\x00\n.', max_size=12),
    st.sampled_from(
        ["..", ".", "", "a/../../b", "../a", "a\\b", "CON", "a.", "a ", " a", "a\n", "/etc/passwd", "a" * 101]
    ),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
)


@many
@given(NAMES)
def test_names_of_runs_and_models_stay_within_their_folder(name: str) -> None:
    allowed = set(string.ascii_letters + string.digits + "._-")
    sound = 0 < len(name) <= 100 and set(name) <= allowed and name[0] not in "._-"
    base = ["runs=/data/runs", "data.tiles=tiles", "teacher.classical=true"]
    for job, key, rest in (
        (PretrainConfig, "name", base),
        (PromoteConfig, "registered_name", ["rollback=true"]),
        (
            PretrainSearch,
            "register_best",
            [*base, "name=a", "space={optimizer.lr: {uniform: [1, 2]}}"],
        ),
    ):
        config = refuse_or_load(job, None, [*rest, f"{key}={json.dumps(name)}"])
        assert (config is not None) == sound
        if config is not None:
            assert getattr(config, key) == name
            assert os.path.normpath(join("/data/runs", name)) == f"/data/runs/{name}"


@many
@given(NAMES)
def test_names_of_tile_sets_are_places_of_their_own(name: str) -> None:
    output = f"/data/sets/{name}"
    config = refuse_or_load(IngestConfig, None, [f"output={json.dumps(output)}", "images={index: i.csv, mpp: 0.5}"])
    if config is None:
        return
    assert isinstance(config, IngestConfig)
    assert config.output == output
    assert "\\" not in name
    assert "://" not in name
    assert not any(unicodedata.category(each) in ("Cc", "Cs") for each in name)
    assert name == name.rstrip()


@settings(many, max_examples=80)
@given(st.lists(NAMES.filter(lambda name: name and not re.search("[\ud800-\udfff]", name)), unique=True, max_size=6))
def test_files_for_slides_are_within_their_folder_and_of_one_slide_each(slides: list[str]) -> None:
    files = name_files(slides)
    assert list(files) == slides
    folded = {unicodedata.normalize("NFKC", file).casefold() for file in files.values()}
    assert len(folded) == len(slides)
    for file in files.values():
        assert PurePosixPath(f"{file}.geojson").parts == (f"{file}.geojson",)
        assert not re.search(r"[/\\:*?\"<>|\x00-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069]", file)
        assert len(f"{file}.geojson".encode()) <= 255
        assert file == file.strip(". ")
        assert file
