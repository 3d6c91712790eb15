"""What every command does: parse the configuration, report errors, print the closing JSON line."""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import yaml

from histill.cluster.ray_errors import unwrap_error
from histill.cluster.signals import Interrupted, handle_signals
from histill.config.arguments import Parser
from histill.config.base import Strict
from histill.config.describe_keys import format_keys
from histill.config.keys import nested_models
from histill.config.load import OneOf, load_config
from histill.config.redact import print_trace, redact, redact_all
from histill.errors import InputError, format_error
from histill.storage.control import json_value

C = TypeVar("C", bound=Strict)
_WIDEST = 120  # characters of a line of --help


@dataclass(frozen=True)
class Outcome:
    """A job's result, printed as one JSON line. `ok=False` ends the job with status 1."""

    values: Mapping[str, Any]
    ok: bool = True
    closing: str | None = None  # last line on stderr: what was made, and what is next


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect all stdout to stderr, also that of native libraries: stdout is for the outcome alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def run_job(
    model: type[C] | OneOf[C],
    main: Callable[[C], Outcome],
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    prog: str | None = None,
) -> int:
    """Parse the configuration, call `main`, print its outcome as one JSON line on stdout; returns the exit status.

    A top-level key of the configuration may also be given as an option: `--register-best NAME` is register_best=NAME.
    `description` and `prog` are of --help; None: the model's docstring, and the script's name.

    0: done. 1: a gate refused, or the job failed. 2: bad input. 130: interrupted by Ctrl-C, 143 by SIGTERM.
    """
    sys.excepthook = lambda kind, error, trace: print_trace(error)
    given = sys.argv[1:] if argv is None else argv
    chosen = _choose_model(model, given)
    arguments = _parser(chosen, description, prog).parse_intermixed_args(given)
    if arguments.schema:
        print(json.dumps(chosen.model_json_schema(), indent=1))
        return 0
    try:
        with handle_signals():
            config = load_config(model, arguments.config, [*arguments.overrides, *(arguments.options or ())])
            if arguments.print_config:
                print(yaml.safe_dump(redact_all(config.model_dump(mode="json")), sort_keys=False), end="")
                return 0
            if arguments.verbose:
                os.environ["HISTILL_VERBOSE"] = "1"
            with _stdout_to_stderr():
                outcome = main(config)
    except Interrupted as interruption:  # the signal handler has already printed a message
        return interruption.status
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume.", file=sys.stderr)
        return 130
    except Exception as error:
        known = unwrap_error(error)
        if known is None:
            raise
        if arguments.verbose:
            print_trace(error)
        print(redact(format_error(known)), file=sys.stderr)
        return 2 if isinstance(known, InputError) else 1
    print(json.dumps(json_value(outcome.values), sort_keys=True, allow_nan=False), flush=True)
    if outcome.closing is not None:
        print(redact(outcome.closing), file=sys.stderr)
    return 0 if outcome.ok else 1


def _choose_model(model: type[C] | OneOf[C], given: Sequence[str]) -> type[Strict]:
    """The model whose keys are shown in --help and accepted as options; a wrong choice is refused later."""
    if not isinstance(model, OneOf):
        return model
    named = [value for key, _, value in (each.partition("=") for each in given) if key.lstrip("-") == model.key]
    named += [value for option, value in pairwise(given) if option == f"--{model.key}"]
    return model.models.get(named[-1] if named else "", next(iter(model.models.values())))


def _parser(model: type[Strict], description: str | None, prog: str | None) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description=(description or model.__doc__ or "").strip(),
        epilog="keys (one without a dot may also be given as an option, --name NAME)\n\n"
        + format_keys(model, min(shutil.get_terminal_size().columns, _WIDEST)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set one key, once, e.g. data.batch_size=64")
    parser.add_argument("-c", "--config", metavar="FILE", action=_Once, help="YAML file with the keys below")
    for name, field in model.model_fields.items():
        if not nested_models(field.annotation) and name != "config":
            kind = _Flag if field.annotation is bool else _Option
            parser.add_argument(f"--{name.replace('_', '-')}", action=kind, dest="options", help=argparse.SUPPRESS)
    parser.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON schema of the YAML file, for editors, and stop"
    )
    parser.add_argument("--verbose", action="store_true", help="show the workers' own logs and full tracebacks")
    return parser


class _Once(argparse.Action):
    """A file that may be given once: argparse would silently drop the first of two."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice; keep one file, and set further keys as key=value")
        setattr(namespace, self.dest, values)


class _Option(argparse.Action):
    """`--some-key VALUE` means the override some_key=VALUE."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        key = (option_string or "").lstrip("-").replace("-", "_")
        namespace.options = [*(namespace.options or ()), f"{key}={values}"]


class _Flag(_Option):
    """`--some-key` means the override some_key=true."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how, nargs=0)

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        super().__call__(parser, namespace, "true", option_string)
