"""The command `histill`: `histill <verb>` for each use case, and help."""

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from histill.cli.verbs import VERBS, find_verb
from histill.errors import InputError, format_error
from histill.version import __version__

_NEWCOMERS = {
    "demo": "the whole pipeline on a sample slide, in minutes",
    "ui": "show the demo's runs in MLflow",
}
_HELPERS = {
    "explain": "what an error's code means: histill explain mpp-missing",
    "completion": 'complete with Tab: eval "$(histill completion bash)"',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` begins with; returns the exit status: 2 for an unknown one."""
    given = sys.argv[1:] if argv is None else list(argv)
    if "_ARGCOMPLETE" in os.environ:
        from histill.cli.completion import complete

        complete(tuple(_OTHERS))
    if given[:1] == ["help"] and len(given) > 1:
        given = [given[1], "--help"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name, arguments = given[0].replace("-", "_"), given[1:]
    if given[0] in ("-V", "--version"):
        print(f"histill {__version__}")
        return 0
    verb = find_verb(name=name)
    if verb is not None:
        from histill.cli.command import run_verb

        return run_verb(verb, arguments, prog=f"histill {verb.name}")
    if name in _OTHERS:
        return _OTHERS[name](arguments)
    known = [*(verb.name for verb in VERBS), *(verb.job for verb in VERBS), *_OTHERS]
    near = get_close_matches(name, known, 1)
    meant = f"did you mean {near[0]}?" if near else "see histill --help."
    return _refuse(f"histill has no verb {given[0]!r}; {meant}")


def _help() -> str:
    lines = [
        "usage: histill VERB [-c FILE] [key=value ...]",
        "",
        "Distil small histology models on Ray. Each verb takes a YAML file, keys over",
        "it, or both; histill VERB --help lists the keys. It runs on the cluster that",
        "RAY_ADDRESS names or else on this machine, with workers.count=0 without Ray,",
        "and prints one JSON line at its end.",
    ]
    verbs = {verb.name: verb.summary for verb in VERBS}
    for title, part in (("first steps", _NEWCOMERS), ("verbs", verbs), ("help", _HELPERS)):
        lines += ["", f"{title}:", *(f"  {name:<11}{summary}" for name, summary in part.items())]
    return "\n".join(lines)


def _demo(arguments: Sequence[str]) -> int:
    from histill.local.demo import main

    return main(arguments)


def _ui(arguments: Sequence[str]) -> int:
    from histill.local.ui import main

    return main(arguments)


def _explain(arguments: Sequence[str]) -> int:
    from histill.error_catalogue import explain

    if _asks_for_help("explain", "CODE", arguments):
        return 0
    if len(arguments) != 1:
        return _refuse("name one code, as an error shows it in brackets: histill explain mpp-missing.")
    try:
        print(explain(arguments[0]))
    except InputError as error:
        return _refuse(str(error))
    return 0


def _completion(arguments: Sequence[str]) -> int:
    from argcomplete import shell_integration

    shells = ("bash", "zsh", "fish", "tcsh", "powershell")
    if _asks_for_help("completion", "|".join(shells), arguments):
        return 0
    if len(arguments) != 1 or arguments[0] not in shells:
        return _refuse(f"name your shell: histill completion {'|'.join(shells)}.")
    print(shell_integration.shellcode(["histill"], shell=arguments[0]))
    return 0


def _asks_for_help(name: str, takes: str, arguments: Sequence[str]) -> bool:
    """Whether `arguments` ask how the helper `name` is called, which is then printed."""
    asked = any(each in ("-h", "--help") for each in arguments)
    if asked:
        print(f"usage: histill {name} {takes}\n\n{_HELPERS[name]}")
    return asked


def _refuse(said: str) -> int:
    print(format_error(InputError(said, code="command-line-wrong")), file=sys.stderr)
    return 2


_OTHERS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _demo,
    "ui": _ui,
    "explain": _explain,
    "completion": _completion,
}
