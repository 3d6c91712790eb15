"""Show what the demo left in MLflow: `histill ui`, run in the folder that holds `.demo`."""

import json
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from histill.config.arguments import Parser
from histill.config.common import Tracking
from histill.errors import HistillError, InputError, format_error
from histill.local.ports import first_free_port
from histill.local.tracking import TrackingServer, mlflow_server

FOLDER = Path(".demo") / "mlflow"
PORT = 5000  # MLflow's own; the same each time, unless it is taken


def serve(folder: Path) -> None:
    """Serve the runs in `folder` and print the address, until a signal ends the process.

    Raises:
        InputError: the folder contains no runs.
        HistillError: the server did not start.
    """
    if not (folder / "mlflow.db").is_file():
        raise InputError(f"{folder} holds no MLflow runs; run `histill demo` first.", code="source-missing")
    with mlflow_server(folder, first_free_port(PORT)) as server:
        print(f"MLflow is at {_find_page(server)} (Ctrl-C ends it)", flush=True)
        signal.pause()


def _find_page(server: TrackingServer) -> str:
    """The page of the demo's runs and their charts: MLflow's home is about generative AI."""
    name = urllib.parse.urlencode({"experiment_name": Tracking().experiment})
    try:
        with urllib.request.urlopen(
            f"{server.uri}/api/2.0/mlflow/experiments/get-by-name?{name}", timeout=30
        ) as answer:
            place = f"/{json.load(answer)['experiment']['experiment_id']}/runs"
    except urllib.error.HTTPError:  # no run yet
        place = ""
    return f"{server.uri}/#/experiments{place}?workflowType=machine_learning"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 after Ctrl-C or SIGTERM, 2 without runs to show, 1 without a server to show them."""
    Parser(prog="histill ui", description="show the demo's runs in MLflow").parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(FOLDER)
    except KeyboardInterrupt:
        pass
    except HistillError as error:
        print(format_error(error), file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
