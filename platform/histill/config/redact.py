"""Find secrets in text, to refuse them in inputs and to remove them from everything shown or stored."""

import base64
import json
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "(hidden)"
_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,30}:/{1,3})(?P<rest>[^\s/]\S*)")
_NETLOC = re.compile(r"[^/?#]*")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@]*)(:[0-9]*)?[^\w@:]*:?")
_LOGIN = re.compile(r"(?<![\w/.])(?://)?[^\s:@/\"'=]+:[^\s@\"'/][^\s@\"']*@(?=\w)")  # user:password@host
_QUERY = re.compile(r"\?[^\s\"'<>]*=[^\s\"'<>]*|#[^\s\"'<>]*=[^\s\"'<>]*")
_SECRET_WORD = r"secret|passw|passphrase|token(?!s\b)|credential|access_?key|api_?key|private_?key|signature"
_ASSIGNED = re.compile(
    rf"(?P<name>(?<![\w.-])[\w.-]*(?:{_SECRET_WORD})[\w.-]*(?:[\"']?\s*=|[\"']\s*:)\s*)(?!\s|{re.escape(HIDDEN)})"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;)\]}]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<kind>\bBearer|\bAuthorization[\"']?:\s*[\"']?\w+)\s+[^\s\"',]{4,}", re.IGNORECASE)
_SECRET_NAME = re.compile(_SECRET_WORD, re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_NO_SECRET = re.compile(r"(PATH|FILE|FILES|DIR|MODE|URI|URL|ENDPOINT|EXPIRATION)$", re.IGNORECASE)
_SHORTEST = 6  # characters: shorter values of variables are not searched for


def redact(text: str) -> str:
    """`text` without secrets: logins and queries of addresses, values of passwords and tokens, and the values of
    environment variables such as AWS_SECRET_ACCESS_KEY."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret_variable(name):
            for form in _forms(value, os.environ.get(re.sub("PASSWORD|PASSWD", "USERNAME", name), "")):
                text = text.replace(form, HIDDEN)
    text = _LOGIN.sub("", _ADDRESS.sub(_shown, text))
    return _BEARER.sub(rf"\g<kind> {HIDDEN}", _ASSIGNED.sub(rf"\g<name>{HIDDEN}", text))


def _forms(secret: str, user: str) -> list[str]:
    """The forms of a secret in text, longest first: plain, quoted, URL-encoded, with its user in a header."""
    raw = os.fsencode(secret)
    written = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(raw), quote(raw, ""), quote_plus(raw)}
    header = base64.b64encode(os.fsencode(f"{user}:{secret}")).decode()
    return sorted({*written, header}, key=len, reverse=True)


def print_trace(error: BaseException) -> None:
    """Print the traceback of `error` to stderr, with secrets removed from its messages."""
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def redact_all(value: Any) -> Any:
    """Plain data with every string redacted."""
    if isinstance(value, Mapping):
        return {redact_all(key): redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def names_secret(name: str) -> bool:
    """Whether a key of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable of this name holds a secret itself, rather than the path of one."""
    return _SECRET_VARIABLE.search(name) is not None and _NO_SECRET.search(name) is None


def find_credentials(value: Any, key: Sequence[str] = ()) -> tuple[str, ...] | None:
    """The key path of the first address in plain data with a login or, as in presigned URLs, a query."""
    if isinstance(value, Mapping):
        items = [(str(name), item) for name, item in value.items()]
        if named := next((name for name, _ in items if holds_credentials(name)), None):
            return (*key, redact(named))
    elif isinstance(value, list | tuple):
        items = [(str(position), item) for position, item in enumerate(value)]
    else:
        return tuple(key) if isinstance(value, str) and holds_credentials(value) else None
    return next((found for name, item in items if (found := find_credentials(item, (*key, name)))), None)


def holds_credentials(text: str) -> bool:
    """Whether an address in `text` contains a user, a password, or a query such as `?token=...`."""
    return any(_shown(match) != match[0] for match in _ADDRESS.finditer(text))


def begins_with_login(text: str) -> bool:
    """Whether `text` is an address without a scheme, such as `user:password@host`."""
    return _LOGIN.match(text) is not None


def _shown(match: re.Match[str]) -> str:
    """An address without its login and its query."""
    scheme, rest = match["scheme"], match["rest"]
    single = not scheme.endswith("//")
    netloc = _NETLOC.match(rest)
    host = netloc[0] if netloc else ""
    if "@" in rest:
        before = rest.rpartition("@")[0]
        if ":" in host or (not single and ("@" in host or scheme.lower().startswith("http"))):
            rest = rest[len(before) + 1 :]
    elif not single and _HOST_AND_PORT.fullmatch(host) is None:
        return f"{scheme}{HIDDEN}"
    mark = _QUERY.search(rest) or (re.search(r"\?[^\s\"'<>]+", rest) if scheme.lower().startswith("http") else None)
    return scheme + (rest if mark is None else f"{rest[: mark.start() + 1]}{HIDDEN}{rest[mark.end() :]}")
