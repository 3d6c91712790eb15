"""Show what the demo left in MLflow: `histill ui`, run in the folder that holds `.demo`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from histill.errors import HistillError, InputError, format_error
from histill.local.tracking import mlflow_server

FOLDER = Path(".demo") / "mlflow"


def serve(folder: Path) -> None:
    """Serve the runs in `folder` and print the address, until a signal ends the process.

    Raises:
        InputError: the folder contains no runs.
        HistillError: the server did not start.
    """
    if not (folder / "mlflow.db").is_file():
        raise InputError(f"{folder} holds no MLflow runs; run `histill demo` first", code="demo-failed")
    with mlflow_server(folder) as server:
        print(f"MLflow is at {server.uri} (Ctrl-C ends it)", flush=True)
        signal.pause()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 after Ctrl-C or SIGTERM, 2 without runs to show, 1 without a server to show them."""
    argparse.ArgumentParser(prog="histill ui", description="show the demo's runs in MLflow").parse_args(argv)
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
