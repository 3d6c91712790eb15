"""Configurations: what is read, what is refused, and in which words."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from histill.cli.job import Outcome, run_job
from histill.config.cache_responses import CacheConfig
from histill.config.check_cluster import CheckConfig
from histill.config.common import WorkerGroup, Workers
from histill.config.convert_encoder import ConvertConfig
from histill.config.distill_student import DistillConfig
from histill.config.export_model import ExportConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import apply_overrides, dotted_keys, load_config, nested_models, parse_yaml
from histill.config.predict_tiles import PredictConfig
from histill.config.pretrain_student import PretrainConfig
from histill.config.promote_model import PromoteConfig
from histill.config.prune_student import PruneConfig
from histill.config.score_model import ScoreConfig
from histill.config.search_students import SearchConfig
from histill.config.sync_metrics import SyncConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.search.configs import SEARCHES, DistillSearch, PretrainSearch

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
JOBS = sorted((ROOT / "jobs").glob("*.py"))
IMAGES = ["output=out", "images.index=index.csv", "images.mpp=0.25"]
PRETRAIN = ["name=a", "runs=runs", "data.tiles=tiles", "teacher.classical=true"]


def refused(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(IngestConfig, None, [*IMAGES, *overrides])
    return str(caught.value)


def test_file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("output: a\ntile_px: 512\nimages: {index: index.csv, mpp: 0.25}\n")
    config = load_config(IngestConfig, str(path), ["tile_px=128", "images.columns.case=organ"])
    assert (config.output, config.tile_px) == ("a", 128)
    assert config.images is not None
    assert config.images.columns.case == "organ"
    assert config.images.mpp == 0.25


def test_lists_become_tuples() -> None:
    config = load_config(IngestConfig, None, [*IMAGES, "split.pinned={test: [a, b]}"])
    assert config.split.pinned == {"test": ("a", "b")}
    student = load_config(PretrainConfig, None, [*PRETRAIN, "student.decoder_channels=[5, 4, 3, 2, 1]"]).student
    assert student.decoder_channels == (5, 4, 3, 2, 1)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("2E4", 2e4), ("-1e-2", -0.01), ("1.5e-1", 0.15), ("e-3", "e-3")]
)
def test_exponents_without_a_dot_are_numbers(text: str, value: object) -> None:
    assert parse_yaml(text) == value


def test_learning_rate_of_1e_3() -> None:
    assert load_config(PretrainConfig, None, [*PRETRAIN, "optimizer.lr=1e-3"]).optimizer.lr == 1e-3


def test_overrides_leave_the_original_alone() -> None:
    original = {"a": {"b": 1}}
    assert apply_overrides(original, ["a.c=2"]) == {"a": {"b": 1, "c": 2}}
    assert original == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tile_pix=3", ("'tile_pix'", "3", "did you mean 'tile_px'?")),
        ("images.colums.case=x", ("'images.colums'", "did you mean")),
        ("tile_px=big", ("'tile_px'", "'big'", "integer")),
        ("tile_px=8", ("'tile_px'", "8", "32")),
        ("split.train=0.5", ("split", "0.7", "add up to 1")),
        ("slides={paths: [a.svs], mpp: 0.5}", ("exactly one source",)),
        ("slides={paths: [a.svs], mpp: 0.5, split_within_slide: true}", ("split_within_slide is for regions",)),
        ("rows_per_group=2000", ("2000", "1024")),
        ("split.pinned={test: [a], val: [a]}", ("'a'", "pinned twice")),
    ],
)
def test_refusals_name_key_value_and_remedy(override: str, said: tuple[str, ...]) -> None:
    message = refused(override)
    assert all(part in message for part in said), message
    assert "\n" not in message


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match=r"'output' is missing; set it .* output="):
        load_config(IngestConfig, None, ["images.index=i.csv", "images.mpp=1.0"])


@pytest.mark.parametrize("text", ["a: [1", "- a list", "a: !!python/object/apply:os.getcwd []"])
def test_what_is_not_a_mapping_of_plain_values(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"job\.yaml"):
        load_config(IngestConfig, str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        load_config(IngestConfig, "nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.flips=true", ("'data.flips'", "not a key")),
        ("data.augment.crop_px=16", ("'data.augment.crop_px'", "16", "32")),
        ("data.augment.stain=1.5", ("'data.augment.stain'", "1.5", "less than 1")),
        ("data.augment.brightness=-0.1", ("'data.augment.brightness'", "-0.1")),
        ("data.balance=organ", ("'data.balance'", "organ", "'label', 'slide', 'case' or 'response'")),
        ("data.decode=torch", ("'data.decode'", "torch")),
        ("data.reader=ray_data", ("'data.reader'", "did you mean 'data.decode'")),
        ("data.shuffle_tiles=0", ("'data.shuffle_tiles'", "0")),
        ("data.read_threads=0", ("'data.read_threads'", "0")),
        ("student={size_px: 64, mpp: 1.0}", ("student", "size_px or mpp, not both")),
        ("student.size_px=48", ("student.size_px", "48", "multiple of 32")),
        ("student.size_px=4", ("'student.size_px'", "4", "greater than or equal to 8")),
        ("student.mpp=0", ("'student.mpp'", "0")),
        ("storage.cache={folder: cache, max_gb: 1}", ("storage.cache.folder", "cache", "absolute path")),
        ("storage.cache={folder: /tmp/cache, max_gb: 0}", ("storage.cache.max_gb", "0")),
        ("data.batch_size=1", ("data.batch_size 1", "workers.count 2", "at least 2", "fewer parts or workers")),
    ],
)
def test_refusals_of_a_training_run(override: str, said: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        load_config(PretrainConfig, None, [*PRETRAIN, override])
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "\n" not in message


def test_what_a_training_run_varies() -> None:
    plain = load_config(PretrainConfig, None, PRETRAIN).data
    assert plain.augment.flips
    assert not plain.augment.colors
    assert (plain.augment.crop_px, plain.balance, plain.decode) == (None, None, "auto")
    varied = load_config(PretrainConfig, None, [*PRETRAIN, "data.augment={flips: false, stain: 0.1, crop_px: 128}"])
    assert varied.data.augment.colors
    assert (varied.data.augment.flips, varied.data.augment.crop_px) == (False, 128)
    cached = load_config(PretrainConfig, None, [*PRETRAIN, "storage.cache={folder: /tmp/cache, max_gb: 1.5}"])
    assert cached.storage.cache is not None
    assert cached.storage.cache.max_bytes == 1_500_000_000


@pytest.mark.parametrize("key", ["output", "storage.endpoint", "images.index"])
def test_credentials_are_refused_and_never_echoed(key: str) -> None:
    message = refused(f"{key}=http://someone:hunter2@host/bucket")
    assert "holds credentials" in message
    assert "hunter2" not in message
    assert "someone" not in message


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    called: list[IngestConfig] = []
    status = run_job(IngestConfig, lambda config: called.append(config) or Outcome({}), ["--print-config", *IMAGES])
    assert status == 0
    assert not called
    assert load_config(IngestConfig, None, IMAGES).model_dump(mode="json") == yaml.safe_load(capsys.readouterr().out)


def test_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    def bad(config: IngestConfig) -> Outcome:
        raise InputError("culprit.", code="tiles-missing")

    assert run_job(IngestConfig, lambda config: Outcome({"a": 1}), IMAGES) == 0
    assert run_job(IngestConfig, lambda config: Outcome({}, ok=False), IMAGES) == 1
    capsys.readouterr()
    assert run_job(IngestConfig, bad, IMAGES) == 2
    assert capsys.readouterr().err == "error: culprit. [tiles-missing]\n"
    assert run_job(IngestConfig, bad, ["tile_pix=3"]) == 2


def test_a_top_level_key_may_be_an_option() -> None:
    seen: list[SearchConfig] = []
    keys = [*PRETRAIN, "space={loss.soft_cross_entropy.temperature: {uniform: [1, 2]}}"]
    options = ["--register-best", "csat", "--trials=3", "data.batch_size=8", "--compile"]
    assert run_job(SEARCHES, lambda config: seen.append(config) or Outcome({}), [*keys, *options]) == 0
    assert (seen[0].register_best, seen[0].trials, seen[0].data.batch_size, seen[0].compile) == ("csat", 3, 8, True)


@pytest.mark.parametrize(
    ("count", "fewest", "most"), [("3", 3, 3), ("0", 1, 1), ("{min: 1, max: 4}", 1, 4), ("{max: 2, min: 2}", 2, 2)]
)
def test_a_run_takes_a_number_of_workers_or_a_span(tmp_path: Path, count: str, fewest: int, most: int) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"workers:\n  count: {count}\n  cpus: 0.5\n")
    for config in (
        load_config(PretrainConfig, None, [*PRETRAIN, f"workers.count={count}"]),
        load_config(PretrainConfig, str(path), PRETRAIN),
    ):
        assert (config.workers.fewest, config.workers.most) == (fewest, most)
    assert load_config(PretrainConfig, None, PRETRAIN).workers == WorkerGroup(count=2)


def test_a_spans_ends_may_be_set_one_by_one() -> None:
    config = load_config(PretrainConfig, None, [*PRETRAIN, "workers.count.min=1", "workers.count.max=3"])
    assert (config.workers.fewest, config.workers.most) == (1, 3)


NO_COUNTS = ["-1", "1.0", "2.5", "true", "'2'", "many", "null", "[1, 4]", "{}"]
NO_SPANS = ["{min: 0, max: 4}", "{min: 3, max: 2}", "{min: 1}", "{max: 4}", "{min: 1, max: 4, most: 5}"]
NO_ENDS = ["{min: 1.0, max: 4}", "{min: '1', max: 4}", "{min: 1, max: null}"]


@pytest.mark.parametrize("count", [*NO_COUNTS, *NO_SPANS, *NO_ENDS])
def test_what_is_neither_a_number_of_workers_nor_a_span_is_refused(count: str) -> None:
    message = refused_pretraining(f"workers.count={count}")
    assert "workers.count" in message
    assert (
        "expected a number of workers; write 4, or 0 to train in this process, or {min: 1, max: 4} with a min of 1 or "
        "more and no smaller max" in message
    )
    assert "\n" not in message


@pytest.mark.parametrize(("count", "end"), [("{min: true, max: 4}", "min"), ("{min: 1, max: true}", "max")])
def test_true_is_no_end_of_a_span(count: str, end: str) -> None:
    assert f"'workers.count.{end}' is True" in refused_pretraining(f"workers.count={count}")


@pytest.mark.filterwarnings("error")  # pydantic only warns of what it cannot write
def test_a_printed_span_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [*PRETRAIN, "workers.count={min: 1, max: 4}"]
    assert run_job(PretrainConfig, lambda config: Outcome({}), ["--print-config", *keys]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(PretrainConfig, str(printed)) == load_config(PretrainConfig, None, keys)


def test_a_span_leaves_every_worker_of_the_largest_world_its_tiles() -> None:
    span = "workers.count={min: 1, max: 4}"
    message = refused_pretraining(span, "optimizer.accumulate=2", "data.batch_size=7")
    assert (
        "data.batch_size 7 is less than a tile for each of optimizer.accumulate 2 parts of workers.count 4" in message
    )
    assert "choose at least 8" in message
    load_config(PretrainConfig, None, [*PRETRAIN, span, "optimizer.accumulate=2", "data.batch_size=8"])


@pytest.mark.parametrize("count", ["{min: 1, max: 4}", "-1"])
def test_batch_jobs_take_a_number_of_workers_alone(count: str) -> None:
    with pytest.raises(InputError, match=r"'workers\.count'"):
        load_config(CacheConfig, None, [f"workers.count={count}"])


def test_what_needs_ray_refuses_no_workers() -> None:
    assert "set it to worker" in refused_pretraining("workers.count=0", "data.decode=cluster")
    assert load_config(PretrainConfig, None, [*PRETRAIN, "workers.count=0", "data.batch_size=1"]).workers.in_process
    keys = [*PRETRAIN, "space={loss.soft_cross_entropy.temperature: {uniform: [1, 2]}}", "workers.count=0"]
    assert load_config(SEARCHES, None, keys).workers.in_process
    with pytest.raises(InputError, match=r"workers\.count is 0, and such a run needs no cluster; set it to 1 or more"):
        load_config(CheckConfig, None, ["workers.count=0"])


def test_a_sweep_refuses_a_span() -> None:
    keys = [*PRETRAIN, "space={loss.soft_cross_entropy.temperature: {uniform: [1, 2]}}"]
    with pytest.raises(InputError, match=r"workers\.count is a span, and a sweep .*; set it to a number of workers\."):
        load_config(SEARCHES, None, [*keys, "workers.count={min: 1, max: 2}"])
    assert load_config(SEARCHES, None, [*keys, "workers.count={min: 2, max: 2}"]).workers.most == 2


def test_a_number_or_a_span_is_one_key(capsys: pytest.CaptureFixture[str]) -> None:
    """What may be a plain value has no keys below it; what may be missing has."""
    assert list(dotted_keys(WorkerGroup)) == ["cpus", "gpus", "count"]
    assert nested_models(int | Workers) == nested_models(int | Workers | None) == nested_models(int) == []
    assert nested_models(Workers | None) == [Workers]
    assert nested_models(tuple[Workers, ...]) == []
    assert nested_models(Workers | WorkerGroup) == [Workers, WorkerGroup]
    with pytest.raises(SystemExit):
        run_job(PretrainConfig, lambda config: Outcome({}), ["--help"])
    help_text = capsys.readouterr().out
    assert "  workers.count " in help_text
    assert "workers.count.min" not in help_text
    assert "storage.cache.folder" in help_text
    assert "did you mean 'workers.count'?" in refused_pretraining("workers.cuont=2")


def test_tiles_are_kept_decoded_only_in_a_cache() -> None:
    assert "set storage.cache" in refused_pretraining("data.cache_decoded=true")


def refused_pretraining(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(PretrainConfig, None, [*PRETRAIN, *overrides])
    return str(caught.value)


def test_a_key_chooses_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    space = "space={loss.divergence.temperature: {uniform: [1, 2]}}"
    distilling = load_config(SEARCHES, None, [*PRETRAIN, "job=distill_student", space])
    assert type(distilling) is DistillSearch
    assert type(load_config(SEARCHES, None, [*PRETRAIN, space])) is PretrainSearch
    with pytest.raises(InputError, match=r"job is 'score_model'; it is one of pretrain_student, distill_student, fine"):
        load_config(SEARCHES, None, [*PRETRAIN, "job=score_model"])
    for wrong in ("null", "[pretrain_student]", "{a: 1}", "3"):
        with pytest.raises(InputError, match=r"job is not text; it is one of pretrain_student, "):
            load_config(SEARCHES, None, [*PRETRAIN, f"job={wrong}"])
    for given, key in (
        ([], "loss.soft_cross_entropy.weight"),
        (["job=distill_student"], "loss.divergence.weight"),
        (["--job=distill_student"], "loss.divergence.weight"),
        (["--job", "distill_student"], "loss.divergence.weight"),
    ):
        with pytest.raises(SystemExit):
            run_job(SEARCHES, lambda config: Outcome({}), [*given, "--help"])
        assert f"  {key} " in capsys.readouterr().out


CONFIGS: dict[str, Any] = {
    "cache_responses": CacheConfig,
    "check_cluster": CheckConfig,
    "convert_encoder": ConvertConfig,
    "distill_student": DistillConfig,
    "export_model": ExportConfig,
    "finetune_student": FinetuneConfig,
    "ingest_images": IngestConfig,
    "ingest_slides": IngestConfig,
    "pretrain_embeddings": PretrainConfig,
    "pretrain_student": PretrainConfig,
    "promote_model": PromoteConfig,
    "prune_student": PruneConfig,
    "score_model": ScoreConfig,
    "predict_tiles": PredictConfig,
    "sync_metrics": SyncConfig,
    "search_students": SEARCHES,
    "train_teacher": TeacherConfig,
}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_example_configs_are_valid(path: Path) -> None:
    load_config(CONFIGS[path.stem], str(path))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_help_answers_without_the_heavy_packages(job: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(job)!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('LOADED', sorted({'torch', 'ray', 'timm', 'mlflow', 'pyarrow', 'fsspec'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "key=value" in done.stdout
    assert done.stdout.rstrip().endswith("LOADED []")
