"""Run one verb of the command line, as `histill <verb>` or as a job of `ray job submit`."""

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from histill.cli.job import Outcome, run_job
from histill.cli.verbs import Verb, find_verb, load_object


def run_verb(verb: Verb, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run `verb` with the arguments `argv`, None: those of the process; returns the exit status, as `run_job` does."""
    use_case = load_object(verb.use_case)

    def main(config: Any) -> Outcome:
        from histill.cli.closing import close_job
        from histill.cli.outcomes import show

        outcome = show(verb.job, use_case(config), config)
        return replace(outcome, closing=close_job(verb.job, config, outcome.values))

    return run_job(load_object(verb.config), main, argv, description=_describe(verb, use_case), prog=prog)


def run_job_file(job: str) -> int:
    """Run the file jobs/<job>.py; returns the exit status."""
    verb = find_verb(job=job)
    assert verb is not None
    return run_verb(verb)


def _describe(verb: Verb, use_case: Any) -> str:
    """The use case's docstring up to its arguments, and the verb's examples."""
    text = inspect.cleandoc(use_case.__doc__).partition("\nArgs:")[0].rstrip()
    width = min(shutil.get_terminal_size().columns, 100)
    paragraphs = [textwrap.fill(" ".join(each.split()), width) for each in text.split("\n\n")]
    return "\n\n".join([*paragraphs, "\n".join(f"  histill {verb.name} {example}" for example in verb.examples)])
