"""YAML with the position of every node, so that an error can name line and column."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hybridize.errors import Finding, HybridizeError, shorten
from hybridize.files.reading import read_bytes

Step = str | int
Place = tuple[Step, ...]

KEY = "\0key"  # last step of the place of a key itself, beside that of its value

# Aliases of aliases can make a file of a kilobyte into gigabytes of nodes.
MOST_NODES = 200_000
YAML = "tag:yaml.org,2002:"
PLAIN_TAGS = (f"{YAML}map", f"{YAML}seq")
SCALARS = ("str", "int", "float", "bool", "null")


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: plain data, and where each part of it stands."""

    path: Path
    text: str
    data: Any
    positions: dict[Place, tuple[int, int]] = field(repr=False)  # 1-based line and column

    def place(self, where: Place) -> str:
        """`file:line:column: a.b[3]`; an absent node is shown at its nearest parent."""
        line, column = self.position(where)
        dotted = dotted_path(where)
        spot = f"{self.path}:{line}:{column}"
        return f"{spot}: {dotted}" if dotted else spot

    def position(self, where: Place) -> tuple[int, int]:
        """1-based line and column of a node, or of its nearest parent where it is absent."""
        while where and where not in self.positions:
            where = where[:-1]
        return self.positions.get(where, (1, 1))


def dotted_path(where: Place) -> str:
    """`('slots', 3, 'from')` as `slots[3].from`."""
    text = ""
    for step in where:
        if step == KEY:
            continue
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text


def read_yaml(path: Path) -> Document:
    """Parse one YAML document. Nothing in it is evaluated.

    Raises:
        HybridizeError: the file is missing, not UTF-8, not YAML, or nests without end.
        HybridizeError: keys that stand twice in one mapping, all of them.
    """
    if path.is_dir():
        raise HybridizeError("is a folder, not a YAML file", place=str(path))
    try:
        text = read_bytes(path).decode("utf-8")
    except FileNotFoundError:
        raise HybridizeError("no such file", place=str(path)) from None
    except UnicodeDecodeError as error:
        raise HybridizeError(
            f"is not UTF-8 text (byte {error.start})", fix="save it as UTF-8", place=str(path)
        ) from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> Document:
    """`read_yaml` for text that is already in memory; `path` is what errors name."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise HybridizeError(f"not YAML: {error.problem or error.context}", place=spot) from None
    except yaml.YAMLError as error:
        raise HybridizeError(f"not YAML: {str(error).splitlines()[0]}", place=str(path)) from None
    except RecursionError:
        raise HybridizeError("not YAML: nested too deeply", place=str(path)) from None
    reader = _Reader(path, loader)
    try:
        data = reader.value(node, ()) if node is not None else None
    except RecursionError:
        raise HybridizeError("not YAML: nested too deeply", place=str(path)) from None
    if reader.findings:
        raise HybridizeError.of(reader.findings)
    return Document(path=path, text=text, data=data, positions=reader.positions)


def as_dict(value: Any) -> dict[str, Any]:
    """A part of a document as the mapping that it should be; an empty one if it is none."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A part of a document as the list that it should be; an empty one if it is none."""
    return value if isinstance(value, list) else []


class _Loader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's surprises.

    There a donor called `on` is the boolean true, layers `1:30` are ninety, and `010` is eight.
    """


_SURPRISES = ("bool", "int", "float", "timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(_SURPRISES)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?[0-9][0-9_]*(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", "-+0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


class _Reader:
    """Turns nodes into plain data and notes where each stands."""

    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self.path = path
        self.loader = loader
        self.positions: dict[Place, tuple[int, int]] = {}
        self.findings: list[Finding] = []
        self.open: set[int] = set()  # nodes being read, to notice an anchor inside itself

    def value(self, node: yaml.Node, where: Place) -> Any:
        self.positions.setdefault(where, (node.start_mark.line + 1, node.start_mark.column + 1))
        if len(self.positions) > MOST_NODES:
            raise HybridizeError(f"more than {MOST_NODES} nodes", place=str(self.path))
        if id(node) in self.open:
            raise HybridizeError("an anchor that contains itself", place=self._spot(node))
        self.open.add(id(node))
        try:
            if not isinstance(node, yaml.ScalarNode) and node.tag not in PLAIN_TAGS:
                found = f"not YAML: unknown tag '{shorten(node.tag)}'"
                raise HybridizeError(found, place=self._spot(node))
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, where)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*where, i)) for i, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self.open.discard(id(node))

    def _scalar(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(YAML)
        if node.tag == kind or kind not in SCALARS:
            raise HybridizeError(
                f"not YAML: unknown tag '{shorten(node.tag)}'",
                fix=f"known: {', '.join(SCALARS)}",
                place=self._spot(node),
            )
        try:
            value = self.loader.construct_object(node)
            # JSON writes what lies beyond 16 bits as two surrogates; PyYAML leaves the halves.
            if not isinstance(value, str):
                return value
            if "\0" in value:
                raise HybridizeError("a NUL in a text", place=self._spot(node))
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except (yaml.YAMLError, ValueError, LookupError) as error:
            # An explicit tag on what is none of its kind: `!!bool perhaps` is a KeyError.
            reason = (
                getattr(error, "problem", None)
                or f"'{shorten(node.value, 60)}' is not a valid {kind}"
            )
            raise HybridizeError(f"not YAML: {reason}", place=self._spot(node)) from None

    def _mapping(self, node: yaml.MappingNode, where: Place) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        first_seen: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                for name, value in self._merged(value_node, where).items():
                    merged.setdefault(name, value)
                continue
            key = self._key(key_node)
            if key in first_seen:
                line = first_seen[key].start_mark.line + 1
                self.findings.append(
                    Finding(
                        f"key '{key}' stands twice (first in line {line})",
                        fix="keep one of the two",
                        place=f"{self._spot(key_node)}: {dotted_path((*where, key))}",
                    )
                )
                continue
            first_seen[key] = key_node
            own[key] = self.value(value_node, (*where, key))
            # A mistake in a key is shown at the key.
            self.positions[(*where, key, KEY)] = (
                key_node.start_mark.line + 1,
                key_node.start_mark.column + 1,
            )
        return {**merged, **own}

    def _merged(self, node: yaml.Node, where: Place) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                raise HybridizeError("'<<' wants a mapping", place=self._spot(part))
            for name, value in self.value(part, where).items():
                result.setdefault(name, value)
        return result

    def _key(self, node: yaml.Node) -> str:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(key, Hashable) or key is None:
            raise HybridizeError("a key must be a word", place=self._spot(node))
        return key if isinstance(key, str) else str(node.value)

    def _spot(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
