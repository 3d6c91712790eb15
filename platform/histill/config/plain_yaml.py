"""Parse YAML into plain values, refusing whatever YAML would silently drop or reinterpret."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from histill.config.redact import HIDDEN, names_secret

_INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "str"))
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_SIGNS = {"tag:yaml.org,2002:value": "=", "tag:yaml.org,2002:merge": "<<"}  # meaningless as values
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
# YAML 1.1 and 1.2 read these as different values, and people mean a name or a number as written.
_OCTAL = re.compile(r"[-+]?0o?[0-9_]+")  # 08 and 0o17 are strings in YAML 1.1, and numbers in 1.2
_AMBIGUOUS = re.compile(r"[-+]?(0o?[0-9_]+|0b[01_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|.*_.*)")
_MOST_NODES = 100_000  # with aliases expanded


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 and -.5 as numbers, like YAML 1.2, as meant in a learning rate; in YAML 1.1 they are strings."""

    def construct_document(self, node: Any) -> Any:
        _count(node)
        return self.construct_object(node, deep=True)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.value == _SIGNS.get(node.tag):
            node.tag = _STR
        if node.tag == _TIMESTAMP:
            raise _refused(node, f"{node.value} could be a date or a name; put it in quotes")
        if node.tag not in _PLAIN_TAGS:
            raise _refused(node, "a tag (!...) is not read; write the value without it")
        numeric = node.tag in (_INT, _FLOAT) or (
            node.tag == _STR and node.style is None and _OCTAL.fullmatch(node.value)
        )
        if numeric and _AMBIGUOUS.fullmatch(node.value):
            raise _refused(
                node,
                f"{node.value} is read in different ways by different programs; put it in quotes if it is a name, else "
                "write the number in plain digits",
            )
        try:
            value = super().construct_object(node, deep=deep)
            return _joined(value) if isinstance(value, str) else value
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # from PyYAML's own conversions
            raise _refused(node, "a value is malformed; put it in quotes") from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def has_comment(text: str) -> bool:
    """Whether YAML would ignore a part of `text` as a # comment."""
    if "#" not in text:
        return False
    scalars = [token for token in yaml.scan(text, Loader=_Loader) if isinstance(token, yaml.ScalarToken)]
    read = {index for token in scalars for index in range(token.start_mark.index, token.end_mark.index)}
    return any(mark == "#" and index not in read for index, mark in enumerate(text))


def _joined(text: str) -> str:
    """`text` with JSON's surrogate pair escapes, as for an emoji, replaced by the character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le") if re.search("[\ud800-\udfff]", text) else text


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML into plain Python values: None, bool, int, float, str, list, and dict with str keys.

    Raises yaml.YAMLError, whose `problem` repeats no value except a number or a date: for a duplicate key, a key that
    is not a string, a tag, an ambiguous scalar (007, 1_000, 12:30, a date), and invalid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def describe_problem(error: yaml.YAMLError) -> str:
    """Describe the error and its line, as a predicate for the name of the source; repeats no possible secret."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f" at line {mark.line + 1}" if mark else ""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).splitlines()[0]
    if mark and names_secret(mark.get_snippet(max_length=400) or ""):
        return f" holds something other than a plain value{where}; put it in quotes"
    if isinstance(error, _Refusal):
        return f"{where}: {problem}"
    # PyYAML quotes aliases, tags and characters of the text, and its own tokens
    problem = re.sub(r"'[^']*'", lambda quoted: quoted[0] if quoted[0][1] == "<" else HIDDEN, problem)
    return f" is not valid YAML{where}: {problem}; put texts in quotes"


class _Refusal(yaml.constructor.ConstructorError):
    """An error that the loader itself raises."""


def _refused(node: Any, problem: str) -> _Refusal:
    return _Refusal(None, None, problem, node.start_mark)


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse keys that are not strings, since 1 and '1' would differ, and duplicates, of which the last would win."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        merged = key.tag == "tag:yaml.org,2002:merge"
        if key.tag != _STR and not merged:
            what = (
                f"the key {key.value or 'null'}" if isinstance(key, yaml.ScalarNode) else "a list or mapping as a key"
            )
            raise _refused(key, f"{what} is not text; put it in quotes")
        line = key.start_mark.line + 1
        if (before := lines.get(key.value)) is not None:
            first = "on the same line" if before == line else f"at line {before}"
            raise _refused(key, f"the key {_shown(key.value)} is given twice, first {first}; keep one of them")
        lines[key.value] = line


def _shown(key: str) -> str:
    return repr(key) if re.fullmatch(r"[\w.<-]{1,60}", key) else "there"


def _count(root: Any) -> None:
    """Refuse aliases that expand to an unreasonable or infinite size."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in open_nodes:
            raise _refused(node, "an alias stands for what it is a part of; write the value out")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            below = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
            open_nodes.remove(id(node))
        if sizes[id(node)] > _MOST_NODES:
            raise _refused(node, "its aliases stand for too much; write the values out")
        return sizes[id(node)]

    size(root)
