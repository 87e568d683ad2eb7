"""Paths for what leaves this machine: absolute ones are told relative to a folder. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hybridize.files.reading import expanded
from hybridize.files.yaml_source import Document, parse_yaml


def portable(value: Any, folder: Path) -> Any:
    """A value as JSON or YAML has it, in which no string is an absolute path any more.

    Args:
        folder: where relative paths start.
    """
    if isinstance(value, str):
        return os.path.relpath(expanded(value), folder) if _is_absolute(value) else value
    if isinstance(value, Mapping):
        return {key: portable(part, folder) for key, part in value.items()}
    return [portable(part, folder) for part in value] if isinstance(value, list | tuple) else value


def portable_text(document: Document) -> str:
    """A YAML file's text with every absolute path relative to its folder, and else as it is."""
    folder, text = document.path.absolute().parent, document.text
    found = sorted(set(_absolute(document.data)), key=len, reverse=True)
    if not found:
        return text
    for path in found:
        whole = rf"(?<![\w./~-]){re.escape(path)}(?![\w./-])"
        text = re.sub(whole, portable(path, folder).replace("\\", "\\\\"), text)
    wanted = portable(document.data, folder)
    # Written with escapes or over several lines, a path is not found as it stands.
    same = parse_yaml(text, document.path).data == wanted
    return text if same else yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def _is_absolute(value: str) -> bool:
    return value.startswith(("/", "~"))


def _absolute(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from [value] if _is_absolute(value) else []
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _absolute(part)
    elif isinstance(value, list):
        for part in value:
            yield from _absolute(part)
