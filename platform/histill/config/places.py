"""Parse the values of location keys: a path, scheme://bucket/key, a registered model, or a server's address."""

import functools
import importlib.util
import os
import re
import unicodedata

from histill.config.redact import begins_with_login, holds_credentials

MODEL = re.compile(r"^models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))$")
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>.*)", re.DOTALL)
# Recognized as schemes even without slashes: a file may be called 12:30.svs, but not gs:bucket.
_SCHEMES = re.compile(
    "s3[an]?|gc?s|az|abfss?|adl|wasbs?|azureml|hdfs|viewfs|dbfs|https?|ftps?|sftp|ssh|scp|smb|nfs|webdavs?|davs?|file|"
    "arn|oss|cosn?|obs|r2|b2|minio|swift|hf|mlflow-artifacts|models"
)
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SERVER = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]\\]+)(:(?P<port>[0-9]{1,5}))?(/[^\s?#@\\]*)?")
_VARIABLE = re.compile(r"\$\{|\$\(|(^|/)\$[A-Za-z_]\w*(/|$)|%[A-Za-z_]\w*%")
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]")
_CREDENTIALS = "set the AWS_* or MLFLOW_TRACKING_* environment variables instead"
EXPECTED = "a local path or s3://bucket/key"


def read_place(text: str) -> str:
    """Parse `text` as a local path or `scheme://bucket/key`; resolves `~` and `file://`, refuses other addresses.

    Raises ValueError, whose message says what was expected and repeats nothing that could be a secret.
    """
    _refuse_credentials(text)
    _refuse_what_nobody_meant(text)
    if is_windows(text):
        raise ValueError(f"a Windows path, which is not supported; give {EXPECTED}")
    if "\\" in text:
        raise ValueError("it holds a backslash; separate folders by /")
    if _VARIABLE.search(text):
        raise ValueError("it contains a variable, which only a shell expands; write the path itself")
    if (scheme := remote_scheme(text)) is not None:
        return _remote_address(text, scheme)
    if (said := describe_foreign(text)) is not None:
        path = parse_file_url(text)
        if path is None:
            raise ValueError(said)
        return read_place(path)
    if "://" in text:
        raise ValueError(f"it holds :// in the middle; give {EXPECTED}")
    begun = re.match(r"([a-z][a-z0-9]*?)[an]?//", text.lower())
    if begun is not None and _is_remote(begun[1]):
        raise ValueError(f"a colon is missing; write {begun[1]}://bucket/key")
    if text.startswith("//"):
        raise ValueError(f"it begins with //, like a Windows share; give {EXPECTED}")
    return _without_tilde(text)


def read_model_place(text: str) -> str:
    """As `read_place`, or `models:/name@alias` or `models:/name/3` of the registry."""
    if not re.match(r"models:", text, re.IGNORECASE):
        return read_place(text)
    _refuse_what_nobody_meant(text)
    if MODEL.match(text) is None:
        raise ValueError("it names no version of a registered model; write models:/name@alias or models:/name/3")
    return text


def read_file_place(ending: str, text: str) -> str:
    """As `read_place`, of a file to write whose name ends with `ending`, the kind that is written."""
    place = read_place(text)
    if not place.lower().endswith(ending):
        raise ValueError(f"the kind of file that is written here is {ending}; give a name that ends with it")
    return place


def read_server(text: str) -> str:
    """`text` if it is an http(s):// address of a server, without login and query. Raises ValueError."""
    _refuse_credentials(text)
    if "@" in text:
        raise ValueError(f"the address holds credentials; take them out and {_CREDENTIALS}")
    match = _SERVER.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65535:
        raise ValueError("no http(s):// address of a server was given; write one such as http://host:5000")
    return text


def describe_foreign(text: str) -> str | None:
    """The error message for an unsupported kind of address; None for a path or a supported one."""
    match = _SCHEME.match(text.lstrip())
    if remote_scheme(text) is not None or match is None:
        return None
    scheme, rest = match["scheme"].lower(), match["rest"]
    if not rest.startswith(("/", ":", "\\")) and not _SCHEMES.fullmatch(scheme):
        return None
    if scheme.isalnum() and _is_remote(scheme):
        return (
            f"an address in {scheme.upper()} begins with {scheme}:// in small letters, then the bucket; write "
            f"{scheme}://bucket/key"
        )
    if scheme == "models":
        return f"registered models are not accepted here; give {EXPECTED}"
    if scheme == "file":
        return "the only form of file: address is file:///folder/name, without % escapes; give the path itself"
    return f"{scheme}: addresses are neither read nor written; give {EXPECTED}"


def is_windows(text: str) -> bool:
    """Whether `text` is an absolute Windows path."""
    return re.match(r"[A-Za-z]:[\\/]|\\\\", text) is not None


def _refuse_credentials(text: str) -> None:
    if holds_credentials(text) or begins_with_login(text):
        scheme, separator, _ = text.partition("://")
        kind = f"{scheme}:// " if separator and re.fullmatch(r"[A-Za-z0-9+.-]{1,20}", scheme) else ""
        raise ValueError(f"the {kind}address holds credentials or a query; take them out and {_CREDENTIALS}")


def _refuse_what_nobody_meant(text: str) -> None:
    if not text.strip():
        raise ValueError(f"it is empty; give {EXPECTED}")
    if text != text.strip():
        raise ValueError("it begins or ends with a space; take it out")
    odd = next((each for each in text if _INVISIBLE.match(each) or unicodedata.category(each) in ("Cc", "Cs")), None)
    if odd is not None:
        raise ValueError(f"it holds the invisible character U+{ord(odd):04X}; type it again")


def remote_scheme(text: str) -> str | None:
    """The scheme of an object storage address, such as `s3`; None for any other text."""
    scheme, separator, _ = text.partition("://")
    return scheme if separator and scheme.isalnum() and _is_remote(scheme) else None


@functools.cache
def _is_remote(scheme: str) -> bool:
    """Whether `storage/schemes/` has a file for the scheme, going by its name, since this layer may not import it."""
    return scheme != "file" and importlib.util.find_spec(f"histill.storage.schemes.{scheme}") is not None


def _remote_address(text: str, scheme: str) -> str:
    bucket, _, key = text.removeprefix(f"{scheme}://").partition("/")
    if BUCKET.fullmatch(bucket) is None:
        raise ValueError(f"it names no bucket; write {scheme}://bucket/key")
    if any(part in ("", ".", "..") for part in key.removesuffix("/").split("/")) and key:
        raise ValueError(f"a folder of the {scheme}:// address has no name, or is a dot or two; give each one a name")
    return text


def parse_file_url(text: str) -> str | None:
    """The path of file:/path, file:///path and file://localhost/path; None for any other address."""
    match = re.fullmatch(r"file:(?://(?:localhost)?)?(?P<path>/[^/%?#].*|/)", text, re.IGNORECASE | re.DOTALL)
    return None if match is None or "%" in match["path"] else match["path"]


def _without_tilde(text: str) -> str:
    """`~/...` expanded to the current user's home folder."""
    if not text.startswith("~"):
        return text
    path = os.path.expanduser(text) if text == "~" or text.startswith("~/") else text
    if path.startswith("~"):
        raise ValueError("~ is expanded only for your own home folder; write the path itself")
    return path
