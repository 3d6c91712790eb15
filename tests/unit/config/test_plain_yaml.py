"""YAML and overrides: nothing given twice, nothing read as another thing, and one true sentence about each."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from histill.config.ingest_tiles import IngestConfig
from histill.config.load import apply_overrides, load_config, parse_yaml
from histill.config.promote_model import PromoteConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError

pytestmark = pytest.mark.unit

RUN = ["name=a", "runs=runs", "data.tiles=tiles"]
IMAGES = ["output=out", "images={index: index.csv, mpp: 0.25}"]
PROMOTE = ["registered_name=x", "rollback=true"]


def refused(model: Any, *overrides: str, path: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_config(model, None if path is None else str(path), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("gates:\n  floors: {dice: 0.6}\ngates:\n  max_cost_ratio: null\n", "gates", (3, 1)),
        ("gates:\n  floors:\n    dice: 0.6\n    miou: 0.1\n    dice: 0.1\n", "dice", (5, 3)),
        ("gates: {floors: {dice: 0.6,\n  'dice': 0.1}}\n", "dice", (2, 1)),
        ("workers:\n- a: {x: 1}\n- b: [{x: 1}, {x: 1,\n    x: 1}]\n", "x", (4, 3)),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\n  <<: *a\n", "<<", (5, 3)),
    ],
)
def test_a_key_given_twice_in_a_file_is_refused_with_both_lines(
    tmp_path: Path, text: str, key: str, lines: tuple[int, int]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    said = refused(PromoteConfig, path=path)
    assert said.endswith(f"job.yaml at line {lines[0]}: the key {key!r} is given twice, first at line {lines[1]}; keep one of them.")  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["gates={floors: {dice: 0.6, dice: 0.1}}"], "the key 'dice' is given twice, first on the same line"),
        (
            ["gates.bootstrap_samples=200", "gates.bootstrap_samples=300"],
            "override 'gates.bootstrap_samples' is given twice",
        ),
        (
            ["gates.bootstrap_samples=200", "gates.bootstrap_samples=200"],
            "override 'gates.bootstrap_samples' is given twice",
        ),
        (
            ["gates.bootstrap_samples=200", "gates={max_cost_ratio: null}"],
            "override 'gates' conflicts with 'gates.bootstrap_samples'",
        ),
        (
            ["gates={bootstrap_samples: 200}", "gates.bootstrap_samples=300"],
            "override 'gates.bootstrap_samples' conflicts with 'gates'",
        ),
        (
            ["gates={bootstrap_samples: 200, max_cost_ratio: null}", "gates={bootstrap_samples: 300}"],
            "override 'gates' is given twice",
        ),
        (["held_out=null", "held_out.tiles=x"], "override 'held_out.tiles' conflicts with 'held_out'"),
    ],
)
def test_overrides_do_not_undo_each_other(overrides: list[str], said: str) -> None:
    assert f"{said}; keep one of them." in refused(PromoteConfig, *PROMOTE, *overrides)


def test_overrides_may_add_to_each_other_and_replace_the_file() -> None:
    given = apply_overrides(
        {"gates": {"bootstrap_samples": 100}}, ["gates={max_cost_ratio: 0.5}", "gates.floors={dice: 0.6}", "dry=1"]
    )
    assert given == {"gates": {"max_cost_ratio": 0.5, "floors": {"dice": 0.6}}, "dry": 1}


@pytest.mark.parametrize(
    "text", ["{1: a, '1': b}", "{yes: a}", "{null: a}", "{1.5: a}", "{? [a] : b}", "{2026-01-01: a}", "{001: a}"]
)
def test_keys_are_texts(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"quotes"):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["=", "<<"])
def test_a_sign_that_has_a_meaning_in_keys_alone_is_a_text(text: str) -> None:
    assert parse_yaml(text) == text
    assert parse_yaml(f"[a, {text}]") == ["a", text]


def test_a_merged_mapping_gives_way_to_what_is_written_beside_it() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


@pytest.mark.parametrize(
    "text", ["007", "-012", "1_000", "0b11", "12:30", "1:30:00", "190:20:30.15", "08", "0o17", "1_0.5", "-09"]
)
def test_what_programs_read_differently_is_no_number(text: str) -> None:
    """YAML 1.1 makes octals, sixties and bare digits of these, YAML 1.2 other numbers or texts."""
    for key in ("split.pinned={train: [%s]}", "tile_px=%s", "images.columns.label=%s"):
        said = refused(IngestConfig, *IMAGES[: 1 if "images" in key else 2], key % text)
        assert f"{text} is read in different ways by different programs; put it in quotes" in said
    assert load_config(IngestConfig, None, [*IMAGES, f"split.pinned={{train: ['{text}']}}"]).split.pinned == {
        "train": (text,)
    }


@pytest.mark.parametrize("text", ["2026-01-31", "2026-13-45", "2026-01-31 10:00:00", "2026-01-31T10:00:00Z"])
def test_a_date_is_no_name(text: str) -> None:
    assert f"{text} could be a date or a name; put it in quotes" in refused(TeacherConfig, *RUN, f"classes=[a, {text}]")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            "[no, yes]",
            "'classes' holds false (so YAML reads no, off and false) and true (so YAML reads yes, on and true), and",
        ),
        ("[off, tumour]", "'classes' holds false (so YAML reads no, off and false), and"),
        ("[null, tumour]", "'classes' holds null (so YAML reads null, ~ and nothing), and"),
        ("[~, '', ]", "'classes' holds null (so YAML reads null, ~ and nothing), and"),
        ("[1, 2]", "'classes' holds the number 1 and the number 2, and"),
        ("[1e3, a]", "'classes' holds the number 1000.0, and"),
        ("[.nan, .inf]", "'classes' holds the number nan and the number inf, and"),
    ],
)
def test_what_yaml_makes_of_names_is_said_in_one_true_sentence(values: str, said: str) -> None:
    message = refused(TeacherConfig, *RUN, f"classes={values}")
    assert message.startswith(f"the command line: {said} text was expected; put ")
    assert message.count(". ") == 0
    assert message.endswith(" in quotes as you typed it.")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("images={index: i, mpp: 0.5, columns: {label: on}}", "'images.columns.label' holds true"),
        ("images={index: i, mpp: 0.5, columns: {case: 12}}", "'images.columns.case' holds the number 12"),
        ("images={index: 12, mpp: 0.5}", "'images.index' holds the number 12"),
        ("images={index: i, mpp: .nan}", "'images.mpp' is nan: a finite number was expected"),
        ("images={index: i, mpp: .inf}", "'images.mpp' is inf: a finite number was expected"),
        ("images={index: i, mpp: 1e400}", "'images.mpp' is inf: a finite number was expected"),
        ("images=index.csv", "'images' is 'index.csv': it has keys of its own; set images.index"),
        ("slides={paths: a.svs, mpp: 0.5}", "'slides.paths' is 'a.svs': a list such as [a, b] was expected"),
    ],
)
def test_each_kind_of_value_has_its_sentence(override: str, said: str) -> None:
    assert said in refused(IngestConfig, IMAGES[0], override)


@pytest.mark.parametrize("name", ["a b", "../x", "a/b", "ä", "_a", "a" * 101, "a\\n", ""])
def test_a_name_that_cannot_be_a_folders_is_told_what_can(name: str) -> None:
    said = refused(TeacherConfig, f'name="{name}"', *RUN[1:])
    assert "1 to 100 letters, digits, '.', '-' and '_' were expected, a letter or digit first." in said


def test_gates_take_no_nan() -> None:
    assert "finite number" in refused(PromoteConfig, *PROMOTE, "gates.floors={dice: .nan}")
    assert "finite number" in refused(PromoteConfig, *PROMOTE, "gates.ceilings={gmacs: .inf}")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "!!int x",
            "!!timestamp x",
            "!!bool 12",
            "!!binary x",
            "!!set {a}",
            "!!omap [a: 1]",
            "!local x",
            "!!python/name:os.x",
        ),
        *(
            "*nowhere",
            "a: &a [*a]",
            "&a {b: *a}",
            "[" * 4000,
            "{" * 4000,
            "- " * 4000,
            "9" * 5000,
            "\x01",
            "a: =",
            "%TAG x",
        ),
        *("a: 1\n--- \nb: 1", "\ud800", '"\\q"', "'open", "{<<: 3}", "@a", "`a", "a: b: c", "\t- a", "? {a: 1}\n: 2"),
        "x: &x [1,1,1,1,1,1,1,1]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 8)}]\n" for a, b in zip("xabcdefg", "abcdefgh", strict=True)),
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_what_is_no_plain_yaml_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    assert refused(PromoteConfig, *PROMOTE, f"gates={text}")
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert "job.yaml" in refused(PromoteConfig, path=path)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"a: \xc3\x28", b"\x00", b"\x80"])
def test_a_file_of_other_bytes_is_refused_in_a_sentence(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    assert "job.yaml" in refused(PromoteConfig, path=path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_unicode_are_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("registered_name: x\nrollback: true\nlicense: Größe\n", encoding=encoding)
    assert load_config(PromoteConfig, str(path)).license == "Größe"


@pytest.mark.parametrize("path", ["nowhere.yaml", "s3://bucket/job.yaml", "a\x00b", "."])
def test_a_config_that_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_config(PromoteConfig, path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((".5", 0.5), ("-.5", -0.5), ("+.5e3", 500.0), ("1.", 1.0), ("1.5e3", 1500.0), ("1e5", 1e5), ("0x1F", 31)),
        *(("-0", 0), ("0", 0), ("0.50", 0.5), ("..", ".."), ("1.2.3", "1.2.3"), ("a1", "a1"), ("1e", "1e")),
        *(('"\\ud83d\\ude00"', "\U0001f600"), ("'007'", "007"), ('"12:30"', "12:30"), ("x#1", "x#1"), ("'#1'", "#1")),
    ],
)
def test_numbers_and_texts_are_those_of_yaml_1_2_and_of_json(text: str, value: object) -> None:
    assert apply_overrides({}, [f"a={text}"]) == {"a": value}
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize("text", ["a #1", "#1", "[a, b] # c", "[a, #b\n c]"])
def test_an_override_loses_nothing_to_a_comment(text: str) -> None:
    with pytest.raises(InputError, match="holds a #, which begins a comment in YAML; put it in quotes"):
        apply_overrides({}, [f"license={text}"])
