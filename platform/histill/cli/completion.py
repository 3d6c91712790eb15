"""Complete verbs and keys when a shell asks for it."""

import argparse
from typing import Any

import argcomplete

from histill.cli.verbs import VERBS, find_verb, load_object
from histill.config.keys import dotted_keys, nested_models
from histill.config.load import OneOf


def complete(others: tuple[str, ...]) -> None:
    """Answer the shell and end the process; `others` are commands beside the verbs."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("words", nargs="*").completer = lambda prefix, parsed_args, **_: _follow(  # type: ignore[attr-defined]
        parsed_args.words or [], others
    )
    argcomplete.autocomplete(parser, always_complete_options=False)


def _follow(words: list[str], others: tuple[str, ...]) -> list[str]:
    """What may follow `words`: a verb, and then its keys."""
    if not words:
        return [*(verb.name for verb in VERBS), *others]
    verb = find_verb(name=words[0])
    return [] if verb is None else [f"{key}=" for key in _keys(load_object(verb.config))]


def _keys(model: Any) -> list[str]:
    models = list(model.models.values()) if isinstance(model, OneOf) else [model]
    fields = {name: field for each in models for name, field in each.model_fields.items()}
    sections = {name for name, field in fields.items() if nested_models(field.annotation)}
    return sorted({key for each in models for key in dotted_keys(each)} - sections)
