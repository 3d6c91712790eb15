"""Parse a command's arguments; what argparse refuses has a code, and repeats no secret."""

import argparse
from typing import Any, NoReturn

from histill.config.redact import redact
from histill.config.validation_errors import is_shown
from histill.errors import ErrorCode

_WRONG: ErrorCode = "command-line-wrong"


class Parser(argparse.ArgumentParser):
    """Accepts no abbreviated options, and does not repeat the value of an unknown one, which may be a secret."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        said, colon, arguments = message.partition(": ")
        if said == "unrecognized arguments":
            names = [word.partition("=")[0] for word in arguments.split() if word.startswith("--")]
            message = f"{said}{colon}{' '.join(name for name in names if is_shown(name[2:]))}"
        super().error(f"{redact(message)} [{_WRONG}]")
