"""The judges of killed jobs: they find what is torn, left over, otherwise, or still running."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chaos.kill_runs import jobs, objects, processes, result, writes

pytestmark = [pytest.mark.unit, pytest.mark.skipif(sys.platform != "linux", reason="the kills need /proc and prctl")]


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": list(range(100))}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "whole"),
    [("a.parquet", parquet()), ("a.json", b'{"a": [1, 2]}'), ("a.geojson", b'{"a": [1, 2]}')],
)
def test_a_file_that_is_cut_short_is_torn(name: str, whole: bytes) -> None:
    torn = objects.torn
    assert torn({name: whole}) == []
    assert torn({name: whole[:-3], "b.json": b"{}"}) == [name]
    assert torn({f"{name}.0123.part": whole[:-3]}) == []  # no reader takes it


def test_what_is_missing_left_over_or_otherwise_is_told() -> None:
    reference = result.Result({"a": b"1", "b": b"2"}, {"aliases": {"champion": "1"}})
    assert result.differences(reference, reference) == []
    found = result.Result({"a": b"0", "c": b"3"}, {"aliases": {}}, ("RUNNING: first",))
    assert result.differences(reference, found) == [
        "missing: b",
        "left over: c",
        "other contents: a",
        'aliases is {} instead of {"champion": "1"}',
        "RUNNING: first",
    ]


def test_names_and_times_of_a_chain_do_not_count() -> None:
    settled = result.settled
    one = json.dumps({"output": "/tmp/out/predict-1/x", "found": {"tiles": 3, "seconds": 1.5}}).encode()
    other = json.dumps({"output": "/tmp/out/predict-2/x", "found": {"tiles": 3, "seconds": 9.1}}).encode()
    assert settled("p.json", one, "predict-1") == settled("p.json", other, "predict-2")
    fewer = other.replace(b'"tiles": 3', b'"tiles": 2')
    assert settled("p.json", one, "predict-1") != settled("p.json", fewer, "predict-2")


def test_trials_are_known_by_what_they_drew() -> None:
    def run(temperature: float) -> bytes:
        return json.dumps({"config": {"loss": {"soft_cross_entropy": {"temperature": temperature}}}}).encode()

    objects = {
        "CHAIN/sweep.json": b'{"best": "b2"}',
        "CHAIN/trials/a1/run.json": run(2),
        "CHAIN/trials/b2/run.json": run(1.0),
        "CHAIN/trials/c3/run.json": run(1),
        "CHAIN/trials/b2/step-1/model.safetensors": b"b2",
    }
    assert jobs.name_trials(objects) == {
        "CHAIN/sweep.json": b'{"best": "trial-1"}',
        "CHAIN/trials/trial-2/run.json": run(2),
        "CHAIN/trials/trial-1/run.json": run(1.0),
        "CHAIN/trials/trial-1-again/run.json": run(1),
        "CHAIN/trials/trial-1/step-1/model.safetensors": b"b2",
    }


def test_the_strike_comes_with_the_write_that_was_named(tmp_path: Path) -> None:
    struck: list[int] = []
    heard = writes.Writes()
    with writes.watched(tmp_path, heard):
        heard.begin(at=3, then=lambda: struck.append(heard.count))
        for number in range(5):
            (tmp_path / f"{number}.parquet").write_bytes(b"")
        deadline = time.monotonic() + 30
        while heard.count < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (struck, heard.count) == ([3], 5)
    heard.begin()
    for request in ("GET /a", "PUT /a", "HEAD /a", "POST /a?uploads"):
        heard.heard(request)
    assert heard.count == 2


def test_a_process_whose_parent_was_killed_is_found() -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL); "
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    with processes.adopting():
        family = processes.Family.now()
        parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        try:
            assert set(family.strangers()) == {parent.pid, orphan}
            parent.kill()
            parent.communicate()
            assert family.wait_until_alone(0.3)[1] == {orphan: "sleep 600"}
        finally:
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)
        assert family.wait_until_alone(30)[1] == {}
