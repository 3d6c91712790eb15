"""Keys that name a place: what is understood, what is refused, and that no other key takes a place unchecked."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from histill.config.base import Strict
from histill.config.cache_responses import CacheConfig
from histill.config.check_cluster import CheckConfig
from histill.config.common import Storage, Tracking
from histill.config.convert_encoder import ConvertConfig
from histill.config.distill_student import DistillConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import load_config
from histill.config.places import read_model_place, read_place, read_server
from histill.config.predict_tiles import PredictConfig
from histill.config.pretrain_student import PretrainConfig
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import ScoreConfig
from histill.config.sync_metrics import SyncConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.registry.mlflow_client import server_uri
from histill.search.configs import DistillSearch, FinetuneSearch, PretrainSearch
from histill.search.space import check_space
from histill.storage import control
from histill.storage.filesystems import arrow_filesystem
from histill.storage.schemes.s3 import endpoint_of
from histill.storage.uris import beside

pytestmark = pytest.mark.unit

JOBS: list[type[Strict]] = [
    *(
        CacheConfig,
        CheckConfig,
        ConvertConfig,
        DistillConfig,
        DistillSearch,
        FinetuneConfig,
        FinetuneSearch,
        IngestConfig,
    ),
    *(PredictConfig, PretrainConfig, PretrainSearch, PromoteConfig, ScoreConfig, SyncConfig, TeacherConfig),
]
FOREIGN = [
    *("gs://bucket/x", "gcs://bucket/x", "gs:bucket/x", "s3a://bucket/x", "s3n://bucket/x", "az://container/x"),
    *("abfss://c@account.dfs.core.windows.net/x", "wasbs://c/x", "hdfs://host:9000/x", "hdfs:///x", "dbfs:/x"),
    *("https://host/x", "http://host:8333/bucket/x", "HTTPS://host/x", "ftp://host/x", "sftp://host/x", "smb://h/x"),
    *("oss://bucket/x", "r2://bucket/x", "minio://bucket/x", "hf://datasets/x", "arn:aws:s3:::bucket/x"),
    *("memory://x", "simplecache::s3://bucket/x", "mlflow-artifacts:/1/x", "runs:/1/x", "unheard-of://x"),
]
MISSPELT = [
    *("s3:/bucket/x", "s3:bucket/x", "S3://bucket/x", "S3:/bucket/x", "s3://", "s3:///x", "s3//bucket/x"),
    *("s3:\\\\b\\x", "s3://bucket//x", "s3://bucket/../x", "s3://bucket/./x", "s3:// bucket/x", " s3://bucket/x"),
    *("s3://bucket/x ", "./s3://b/x", "/data/s3://bucket/x", "s3://bucket/${RUNS}/x", "$RUNS/x", "${RUNS}"),
    *("%TEMP%/x", "", "   ", "~someone-else/x", "C:\\data", "C:/data", "d:\\", "\\\\server\\share", "//server/share/x"),
    *("data\\tiles", "a\nb", "a\x00b", "a\u202eb", "\ufeff/data", "/data\u200b/x", "file://host/x", "file:x"),
    *("file:///a%20b", "file:///a?b=c", "a\udcff", "models:/a@b"),
]


@pytest.mark.parametrize("text", [*FOREIGN, *MISSPELT], ids=ascii)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_place(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("s3://bucket/x", "s3://bucket", "s3://bucket/", "s3://my.bucket_1/a/b/", "s3://bucket/folder@v1/a+b c#1.svs"),
        *("s3://bucket/Größe/x", "/data/x", "data/x", "./gs:x", "x", "12:30.svs", "H&E:1/x.svs", "a@b/c", "/data/100%"),
        *("/data/a$b.svs", "/data/what?.svs", "../x", "/data/s3/x", "s3/x", "/患者/x"),
    ],
)
def test_a_place_stays_as_it_is(text: str) -> None:
    assert read_place(text) == text


def test_addresses_of_files_and_of_ones_own_folder_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_place("~/runs") == f"{tmp_path}/runs"
    assert read_place("~") == str(tmp_path)
    for text in ("file:///data/x", "file:/data/x", "file://localhost/data/x", "FILE:///data/x"):
        assert read_place(text) == "/data/x"


@pytest.mark.parametrize(
    ("override", "kind"),
    [("report=x.htm", ".html"), ("report=reports/x", ".html"), ("picture=x.html", ".png"), ("picture=x.jpg", ".png")],
)
def test_a_file_of_another_kind_than_is_written_is_refused(override: str, kind: str) -> None:
    with pytest.raises(InputError, match=rf"the kind of file that is written here is {re.escape(kind)}; give a name"):
        load_config(ScoreConfig, None, ["model=/model", "held_out.tiles=/tiles", override])


def test_a_file_of_the_kind_that_is_written_is_a_place() -> None:
    given = ["report=s3://bucket/x.html", "picture=a/x.PNG"]
    config = load_config(ScoreConfig, None, ["model=/model", "held_out.tiles=/tiles", *given])
    assert (config.report, config.picture) == ("s3://bucket/x.html", "a/x.PNG")


def test_registered_models_are_places_of_models_alone() -> None:
    for text in ("models:/nuclei@champion", "models:/nuclei/3", "s3://bucket/runs/first"):
        assert read_model_place(text) == text
    refused = ("models:/nuclei", "models:nuclei@champion", "models://nuclei@x", "Models:/nuclei/3", "models:/a/b/c")
    for text in (*refused, "gs://b/x"):
        with pytest.raises(ValueError, match=r"\w"):
            read_model_place(text)


@pytest.mark.parametrize(
    "text",
    [
        *("host:5000", "sqlite:///x.db", "databricks", "file:///mlruns", "http://", "http://h:99999", "http://h:port"),
        *("http://u:p@h", "http://u@h", "http://h/?token=x", "http://h#token=x", "http://h/a b", "ftp://h", "HTTP://h"),
    ],
)
def test_what_is_no_servers_address_is_refused_wherever_it_enters(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_server(text)
    with pytest.raises(ValidationError):
        Tracking(uri=text)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, text)
        with pytest.raises(InputError) as caught:
            server_uri(Tracking()) if name == "MLFLOW_TRACKING_URI" else endpoint_of(Storage())
        assert "token" not in str(caught.value)
        assert "u:p" not in str(caught.value)
        monkeypatch.delenv(name)
    assert endpoint_of(Storage(endpoint="http://h:1")) == "http://h:1"
    assert server_uri(Tracking(uri="http://h:1/mlflow/")) == "http://h:1/mlflow"


NO_PLACES = {  # texts of other kinds, by the last part of their keys
    *(
        "name",
        "keep_columns",
        "by",
        "encoder",
        "region",
        "decode_nodes",
        "experiment",
        "layer",
        "student_layer",
        "teacher_layer",
        "teacher_layers",
        "image",
    ),
    *(
        "case",
        "label",
        "column",
        "mask",
        "classes",
        *("masks", "regions", "unannotated"),  # labels and classes; regions of predict are places, and checked
        "license",
        "allow",
        "stated",
        "registered_name",
        "register_best",
        "preset",
        "architecture",
        "source",  # of a license, which refuses a login itself
        "folder",
        "profiles",
        "pinned",
    ),
    "space",  # its values are checked by `check_space`, as below
}


def texts(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below `model` that takes any text, with the field that says so."""
    for name, field in model.model_fields.items():
        for below in _models(field.annotation):
            yield from texts(below, f"{prefix}{name}.")
        if field.annotation == dict[str, float] or name == "embeddings":  # names of teachers, of a pattern of their own
            continue
        if field.annotation is str or str in get_args(field.annotation) or "Annotated[str" in str(field.annotation):
            yield f"{prefix}{name}", field


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_every_key_that_takes_any_text_is_a_checked_place_or_known_to_be_none(job: type[Strict]) -> None:
    for key, field in texts(job):
        checked = "read_" in f"{field.metadata}{field.annotation}"
        assert checked or key.rpartition(".")[2] in NO_PLACES or key == "job", key


def test_a_sweep_draws_no_other_places() -> None:
    space = "space={student.weights: {choice: ['gs://bucket/x', /data/x]}}"
    keys = ["name=a", "runs=r", "data.tiles=t", "teacher.classical=true", space]
    with pytest.raises(InputError, match=r"space\.student\.weights: 'student\.weights' is 'gs://bucket/x'"):
        check_space(load_config(PretrainSearch, None, keys))


def test_an_index_names_no_other_places() -> None:
    assert beside("s3://b/set/index.csv", "s3://b/x.png") == "s3://b/x.png"
    assert beside("s3://b/set/index.csv", "file:///data/x.png") == "/data/x.png"
    for text in ("gs://b/x.png", "s3:/b/x.png", "https://h/x.png", "C:\\x.png", "file://h/x.png", "S3://b/x.png"):
        with pytest.raises(InputError, match="cannot be used"):
            beside("/data/index.csv", text)


def test_storage_itself_makes_no_folder_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("gs://bucket/x", "s3:/bucket/x", "dbfs:/x", "C:\\x"):
        with pytest.raises(InputError, match="cannot be used"):
            control.write_bytes(text, b"", Storage())
        with pytest.raises(InputError, match="cannot be used"):
            arrow_filesystem(text, Storage())
    assert not list(tmp_path.iterdir())
    control.write_bytes(f"file://{tmp_path}/x", b"1", Storage())
    assert (tmp_path / "x").read_bytes() == b"1"


def test_buckets_with_profiles_are_named_alone() -> None:
    assert Storage(profiles={"my.bucket-1": "reader"}).profiles == {"my.bucket-1": "reader"}
    for bucket in ("s3://tiles", "tiles/slides", "", "tiles ", "gs://tiles"):
        with pytest.raises(ValidationError, match=r"name of a bucket"):
            Storage(profiles={bucket: "reader"})
