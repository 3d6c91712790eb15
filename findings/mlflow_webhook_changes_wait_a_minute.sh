#!/usr/bin/env bash
# MLflow goes on calling a webhook that was disabled or deleted, and tells a new one nothing, for up to a minute.
#
# Versions: mlflow 3.17.2, SQL store (sqlite), server with one worker.
# Expected: once `create_webhook` has returned, the next event is delivered; once `update_webhook` has disabled a webhook or
#   `delete_webhook` has removed it, none is. All of these are calls of the process that delivers.
# Seen: the server keeps the receivers of each kind of event for MLFLOW_WEBHOOK_CACHE_TTL = 60 s (mlflow#17080), an empty list, too,
#   and its own changes of webhooks do not touch that. After any event of the kind, a webhook that was just made misses all of a
#   minute, and nothing delivers them later, while `test_webhook` answers that it works. A disabled or deleted one is called
#   for a minute, though `list_webhooks` no longer has it. With several workers each has a minute of its own.
# Who it hurts: promotions right after a webhook was set up, so the first run of a deployment and tests of it; and whoever
#   disables a webhook to promote a model that is not to be deployed.
# Way round: MLFLOW_WEBHOOK_CACHE_TTL=0 on the server (a query for each event), or wait a minute after each change.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
cd "$work"
MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true "$work/venv/bin/python" - "$work" 2>"$work/log" <<'PY' || { status=$?; tail -3 "$work/log"; exit $status; }
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mlflow import MlflowClient

received = threading.Event()


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        received.set()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()


@contextmanager
def server(name, **env):
    """A client of a server that may send to this machine over http, which it refuses by default."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    local = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    env |= local | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{sys.argv[1]}/{name}.db"]
    with open(f"{sys.argv[1]}/{name}.log", "w") as log:
        process = subprocess.Popen(command, env=os.environ | env, stdout=log, stderr=log, start_new_session=True)
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
                break
            except OSError:
                time.sleep(0.5)
        yield MlflowClient(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def heard(client):
    received.clear()
    client.set_registered_model_alias("model", "champion", "1")
    return received.wait(3)


def seconds_until(client, wanted):
    """Set the alias again and again until the receiver hears of it, or no longer does."""
    begun = time.monotonic()
    while (waited := time.monotonic() - begun) < 100 and heard(client) != wanted:
        time.sleep(1)
    return round(waited)


def measure(client):
    client.create_registered_model("model")
    client.create_model_version("model", "s3://bucket/model")
    client.set_registered_model_alias("model", "champion", "1")  # while nobody listens
    url = f"http://127.0.0.1:{receiver.server_port}/"
    webhook = client.create_webhook("deploy", url, ["model_version_alias.created"]).webhook_id
    tested = client.test_webhook(webhook).success
    created = seconds_until(client, True)
    client.update_webhook(webhook, status="DISABLED")
    disabled = heard(client)
    client.delete_webhook(webhook)
    assert not client.list_webhooks()
    return tested, created, disabled, seconds_until(client, False)


found = {}
for name, env in (("default", {}), ("no cache", {"MLFLOW_WEBHOOK_CACHE_TTL": "0"})):
    with server(name.replace(" ", "-"), **env) as client:
        found[name] = tested, created, disabled, deleted = measure(client)
    print(f"{name}: test_webhook says {'works' if tested else 'fails'}; the first event is heard {created} s after it was made;")
    print(f"  {'called' if disabled else 'not called'} while disabled; the last event is heard {deleted} s after it was deleted")
receiver.shutdown()
tested, created, disabled, deleted = found["default"]
as_described = tested and 25 < created < 90 and disabled and 25 < deleted < 90 and found["no cache"] == (True, 0, False, 0)
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
