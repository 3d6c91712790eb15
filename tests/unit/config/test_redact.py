"""Secrets: taken out of every text, refused in every address, whatever characters they hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.cli.job import Outcome, run_job
from histill.config.common import Tracking
from histill.config.load import load_config
from histill.config.promote_model import PromoteConfig
from histill.config.redact import find_credentials, holds_credentials, redact
from histill.errors import InputError
from histill.registry.mlflow_client import check_reachable, explain_error, server_uri
from histill.registry.mlflow_runs import flatten_params

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
KEYS = ["registered_name=x", "rollback=true"]
PLANTED = "PLANTED"
LOGINS = [
    *("http://admin:PLANTED@host", "http://admin:PLANTED/word@host:1/x", "http://admin:PLA@NTED:PLANTED@host/x"),
    *("http://admin:%2FPLANTED@host", "http://admin:PLANTED?word@host/x", "http://admin:PLANTED#word@host"),
    *("http://PLANTED@host:5000", "https://admin:12345/PLANTED@host", "http://:PLANTED@host", "http://admin:PLANTED"),
    *("s3://KEY:PLANTED@bucket/x", "s3://KEY:PLANTED/more@bucket/x", "s3:/KEY:PLANTED@bucket/x", "KEY:PLANTED@host:1"),
    *("//KEY:PLANTED@host/x", "//KEY:PLANTED/word@host"),
    *("postgresql://mlflow:PLANTED@db/mlflow", "ftp://u:PLANTED@h", "ray://u:PLANTED@h:1", "s3:KEY:PLANTED@bucket"),
]
QUERIES = [
    *("http://host/?token=PLANTED", "https://host/x?access_token=PLANTED", "https://host/x?a=b&sig=PLANTED&c=d"),
    *("https://host/x?X-Amz-Signature=PLANTED", "s3://bucket/x?AWSAccessKeyId=PLANTED&Signature=PLANTED"),
    *("https://host/x?PLANTED", "https://host/#access_token=PLANTED", "https://host/x?sv=1&sig=PLANTED%3D"),
]
OTHERS = [
    *("aws_secret_access_key=PLANTED", "SESSION_TOKEN = PLANTED", '{"password": "PLANTED"}', "{'api_key': 'PLANTED'}"),
    *("Authorization: Bearer PLANTED", "Authorization: Basic PLANTED==", "Credential=PLANTED, Signature=PLANTED"),
]
HARMLESS = [
    *(
        "http://host:5000",
        "the tracking server http://127.0.0.1:5000 cannot be reached; start it.",
        "(http://[::1]:5000)",
    ),
    *("s3://bucket/folder@v1/x.svs cannot be used", "models:/nuclei@champion", "s3://bucket/slide #1?.svs", "a@b.org"),
    *("'http://host:5000': refused", "http://host:5000, http://other:1/x.", "refuses a missing or wrong token; set it"),
    *("set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN)", "/data/a:b/c@d.svs", "12:30", "C:/x"),
]


@pytest.mark.parametrize(
    "form",
    [
        *('pa"ss/wo\\rd+1 x', 'pa"ss/wo\\\\rd+1 x', 'pa\\"ss/wo\\\\rd+1 x', "pa%22ss/wo%5Crd%2B1%20x"),
        *("pa%22ss%2Fwo%5Crd%2B1%20x", "pa%22ss%2Fwo%5Crd%2B1+x", "bWU6cGEic3Mvd29ccmQrMSB4"),
    ],
)
def test_a_secret_of_the_environment_is_found_in_quotes_in_addresses_and_in_headers(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", 'pa"ss/wo\\rd+1 x')
    assert redact(f"the server said {form}.") == "the server said (hidden)."


@pytest.mark.parametrize("text", [*LOGINS, *QUERIES, *OTHERS])
def test_no_secret_is_left(text: str) -> None:
    for said in (text, f"cannot open {text} (refused)", f"'{text}': no", f'error: "{text}", again'):
        assert PLANTED not in redact(said), redact(said)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert not holds_credentials(text)


@pytest.mark.parametrize("text", [*LOGINS, *QUERIES])
def test_an_address_with_a_secret_is_refused_and_never_repeated(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At each key that is a place, a server, a name or unknown; from the environment; in a list, as a key, in YAML."""
    quoted = json.dumps(text)
    for override in (
        *(f"model={quoted}", f"tracking.uri={quoted}", f"storage.endpoint={quoted}", f"copy_to={quoted}"),
        *(f"held_out={{tiles: {quoted}}}", f"modle={quoted}", f"gates={{floors: {{{quoted}: 1}}}}", f"{text}=1", text),
        *(f"--storage.endpoint={text}", f"--copy-to={text}", f"storage={quoted}", f"bootstrap_samples=[{quoted}]"),
    ):
        try:
            status = run_job(PromoteConfig, lambda config: Outcome({}), ["registered_name=x", override])
        except SystemExit as end:
            status = end.code  # of argparse
        output, error = capsys.readouterr()
        assert status == 2, override
        assert PLANTED not in output + error
    monkeypatch.setenv("MLFLOW_TRACKING_URI", text)
    with pytest.raises(InputError) as caught:
        server_uri(Tracking())
    assert PLANTED not in str(caught.value)


def test_credentials_are_found_wherever_they_are() -> None:
    assert find_credentials({"a": [{"b": "s3://k:p@x"}]}) == ("a", "0", "b")
    assert find_credentials({"a": 1, "b": ("s3://x/y", None)}) is None


def test_secrets_of_the_environment_are_known_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "PLANTED+/x=")
        assert redact("cannot sign with PLANTED+/x= at all") == "cannot sign with (hidden) at all"
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/root/.ray/token")
    assert redact("no file /root/.ray/token") == "no file /root/.ray/token"


@given(
    st.text(st.characters(codec="utf-8", exclude_characters=" \t\n\r\"'", exclude_categories=("Z", "C")), min_size=1)
)
def test_no_password_is_left_whatever_it_holds(word: str) -> None:
    password = f"PLANTED{word}PLANTED"
    assert PLANTED not in redact(f"error: http://admin:{password}@host:5000/x is away")
    assert holds_credentials(f"http://admin:{password}@host:5000/x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rollback", "AWS_SECRET_ACCESS_KEY PLANTED"],
        ["--password=PLANTED"],
        ["--password", "PLANTED"],
        ["PLANTED"],
        ["PLANTED/Ab+cdefghij="],
        ["PLANTED0123456789PLANTED0123456789abcdefg=1"],
        ["aws={secret_access_key: PLANTED}"],
        ["aws_secret_access_key=PLANTED"],
        ["tracking={password: [PLANTED}"],
        ["tracking={password: *PLANTED}"],
        ["gates=!PLANTED x"],
        ["gates=*PLANTED"],
        ["bootstrap_samples=token=PLANTED"],
        ["-c", "http://u:PLANTED@host/x.yaml"],
    ],
    ids=" ".join,
)
def test_a_secret_in_the_wrong_place_is_not_repeated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = run_job(PromoteConfig, lambda config: Outcome({}), [*KEYS[:1], *arguments])
    except SystemExit as end:
        status = end.code
    output, error = capsys.readouterr()
    assert status == 2
    assert PLANTED not in output + error


@pytest.mark.parametrize(
    "line", ["password: [PLANTED", "secret: *PLANTED", "a: !PLANTED", "token: 2026-01-01", "a: 'PLANTED"]
)
def test_a_broken_file_tells_no_secret(line: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"registered_name: x\n{line}\nb: 1\n")
    with pytest.raises(InputError) as caught:
        load_config(PromoteConfig, str(path))
    assert PLANTED not in str(caught.value)
    assert "2026" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_traceback_tells_no_secret() -> None:
    code = (
        "from histill.cli.job import run_job\n"
        "from histill.config.sync_metrics import SyncConfig\n"
        "def main(config):\n"
        "    raise KeyError('http://u:PLANTED/w@host?token=PLANTED ' + __import__('os').environ['A_PASSWORD'])\n"
        "run_job(SyncConfig, main, ['unsent=x'])\n"
    )
    environment = os.environ | {"A_PASSWORD": "PLANTED+also", "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    assert "PLANTED" not in done.stderr.replace(code.splitlines()[3].strip(), "")


def test_what_is_kept_of_a_run_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    config = PromoteConfig(registered_name="x", rollback=True, license="see http://u:PLANTED/w@host/x?sig=PLANTED")
    assert PLANTED not in json.dumps(flatten_params(config))
    said = explain_error(ValueError("API at https://u:PLANTED/w@h/x?X-Amz-Signature=PLANTED refused"))
    assert PLANTED not in said
    assert run_job(PromoteConfig, lambda config: Outcome({}), ["--print-config", *KEYS, "license=token=PLANTED"]) == 0
    assert PLANTED not in capsys.readouterr().out


def test_an_address_that_python_cannot_open_is_one_sentence() -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        check_reachable("http://127.0.0.1:1x")
