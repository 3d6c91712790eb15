"""The command `histill`: its help, its verbs, its schema, and the jobs that are the same verbs."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from histill.cli.main import main
from histill.cli.verbs import VERBS, Verb, find_verb, load_object
from histill.config.load import OneOf, parse_yaml
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
JOBS = ROOT / "jobs"


def test_help_names_every_verb_in_80_columns_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb.name} " in said for verb in VERBS)
    assert max(map(len, said.splitlines())) <= 80
    code = (
        "import sys; from histill.cli.main import main; main(['--help']); print(sorted({'pydantic', 'yaml', 'numpy', "
        "'torch', 'ray'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_misspelled_verb_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrian", "name=x"]) == 2
    assert (
        capsys.readouterr().err
        == "error: histill has no verb 'pretrian'; did you mean pretrain? [command-line-wrong]\n"
    )
    assert main(["dance"]) == 2
    assert "see histill --help" in capsys.readouterr().err


def test_each_verb_is_the_first_word_of_its_function_and_a_job() -> None:
    assert len({verb.name for verb in VERBS}) == len(VERBS)
    assert {path.stem for path in JOBS.glob("*.py")} == {verb.job for verb in VERBS}
    for verb in VERBS:
        assert verb.job.startswith(f"{verb.name}_")
        assert load_object(verb.use_case).__name__ == verb.job
        assert find_verb(name=verb.name) is find_verb(name=verb.job) is find_verb(job=verb.job) is verb


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_its_help_is_the_functions_and_the_same_for_the_job(
    verb: Verb, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([verb.name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: histill {verb.name}")
    assert "Args:" not in said
    for example in verb.examples:
        assert f"  histill {verb.name} {example}\n" in said
    monkeypatch.setattr(sys, "argv", [f"jobs/{verb.job}.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(JOBS / f"{verb.job}.py"), run_name="__main__")
    described = said[said.index("\n\n") : said.index("positional arguments:")]
    assert described in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((JOBS / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_accepts_the_configurations_and_refuses_a_misspelling(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = parse_yaml(path.read_bytes())
    verb = next(verb for verb in VERBS if verb.job in path.stem or path.stem.startswith(verb.name))
    arguments = [f"job={data['job']}"] if "job" in data else []
    assert main([verb.name, "--schema", *arguments]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(data)] == []
    assert list(validator.iter_errors(data | {"storrage": {}}))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("histill pre", ["predict", "pretrain"]),
        ("histill cache teacher.cl", ["teacher.classical="]),
        ("histill search job", ["job="]),
        ("histill nothing ", []),
    ],
)
def test_a_shell_completes_verbs_and_keys(line: str, expected: list[str], tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "histill"], env=os.environ | asked, check=True)
    assert sorted(word.strip() for word in answer.read_text().split("\n") if word.strip()) == expected


def test_a_code_is_explained_with_and_without_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "mpp-missing"]) == main(["explain", "[mpp-missing]"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mpp-missing\n")
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    assert main(["explain", "mpp-mising"]) == 2
    assert "did you mean mpp-missing" in capsys.readouterr().err
    assert main(["explain"]) == 2


def test_completion_prints_what_a_shell_evaluates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert "complete " in capsys.readouterr().out
    assert main(["completion", "excel"]) == 2
    assert "name your shell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        (["help", "train"], "usage: histill train "),
        (["help", "demo"], "usage: histill demo "),
        (["explain", "--help"], "usage: histill explain CODE"),
        (["help", "explain"], "usage: histill explain CODE"),
        (["completion", "--help"], "usage: histill completion bash|zsh"),
        (["ui", "--help"], "usage: histill ui"),
    ],
)
def test_help_is_given_of_each_command(arguments: list[str], begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(arguments)
    except SystemExit as ended:  # argparse's
        status = int(ended.code or 0)
    assert status == 0
    assert capsys.readouterr().out.startswith(begins)


@pytest.mark.parametrize("arguments", [["demo", "--slides", "x"], ["ui", "--port", "3"], ["train", "--verbos"]])
def test_a_wrong_option_is_refused_with_a_code(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("[command-line-wrong]\n")


def test_a_folder_without_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ui"]) == 2
    said = "error: .demo/mlflow holds no MLflow runs; run `histill demo` first. [source-missing]\n"
    assert capsys.readouterr().err == said


def test_every_verbs_configuration_can_be_loaded() -> None:
    for verb in VERBS:
        model = load_object(verb.config)
        for each in model.models.values() if isinstance(model, OneOf) else [model]:
            assert each.model_json_schema()["properties"]


def test_what_is_missing_or_finished_is_refused_before_torch_and_ray_are_loaded(
    tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "finished.json").write_text("{}")
    train = ["runs=runs", "data.tiles=none", "target=classification"]
    pretrain = ["name=new", "runs=runs", "data.tiles=tiles"]
    tile_set(tmp_path / "tiles", tiles=4, tile_px=32)
    refused = [
        (["train", "name=old", *train], "run-finished"),
        (["train", "name=new", *train], "tiles-missing"),
        (["search", "job=train_teacher", "name=new", *train, "space.optimizer.lr.choice=[0.1, 0.2]"], "tiles-missing"),
        (["cache", "tiles=none", "teacher.classical=true", "output=responses"], "tiles-missing"),
        (["score", "model=runs/old", "held_out.tiles=none"], "tiles-missing"),
        (["score", "model=models:/x/1", "held_out.tiles=tiles"], "config-missing-key"),
        (["cache", "tiles=tiles", "teacher.model=none", "output=responses"], "model-missing"),
        (["cache", "tiles=tiles", "teacher.onnx=none.onnx", "output=responses"], "model-missing"),
        (["cache", "tiles=tiles", "teacher.encoder.folder=none", "output=responses"], "model-missing"),
        (["pretrain", *pretrain, "teacher.classical=true", "responses=none"], "responses-missing"),
        (["pretrain", *pretrain, "embeddings.a.responses=none"], "responses-missing"),
        (["pretrain", *pretrain, "teacher.classical=true", "student.weights=none.safetensors"], "weights-missing"),
        (["convert", "weights=none.bin", "output=encoder"], "weights-missing"),
        (["promote", "model=runs/old", "held_out.tiles=none", "registered_name=a"], "tiles-missing"),
        (["predict", "model=runs/old", "tiles=none", "output=out"], "tiles-missing"),
        (["ingest", "slides.paths=[none.svs, no.svs]", "slides.mpp=0.5", "output=new"], "source-missing"),
    ]
    code = (
        "import json, sys; from histill.cli.main import main; commands = json.loads(sys.argv[1]); "
        "print([main(command) for command in commands], sorted({'torch', 'ray', 'mlflow', 'timm'} & set(sys.modules)))"
    )
    given = [sys.executable, "-c", code, json.dumps([command for command, _ in refused])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{[2] * len(refused)} []\n"
    lines = done.stderr.splitlines()
    assert [line.rpartition("[")[2].rstrip("]") for line in lines] == [code for _, code in refused], lines
    assert lines[-1] == "error: 2 slides do not exist; correct their paths: none.svs, no.svs. [source-missing]"
    assert not (tmp_path / "new" / "ingest.json").exists()
