"""Probes: prompts with an answer that a model knows, or does not know, at some depth. No torch.

A set comes with hybridize, one file of `diagnostics/probes` each, or is a file of the user's: a
JSON object `{"prompt": ..., "answer": ...}` in each line, in UTF-8.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridize.errors import Finding, HybridizeError, did_you_mean
from hybridize.plugins import load_plugin, plugin_names

BROUGHT = "brought by hybridize"
FIXES = {
    "prompt": "write what the model reads",
    "answer": "write what follows, with the space before it",
}
BARE_WORD = re.compile(r"[\w-]*")  # no path: what names a set
ONE_OBJECT = 'write one JSON object in each line: {"prompt": "2+3=", "answer": "5"}'


@dataclass(frozen=True)
class Item:
    """One question to a model.

    Attributes:
        prompt: what the model reads.
        answer: what follows the prompt, with the space that stands between them if there is one.
    """

    prompt: str
    answer: str


@dataclass(frozen=True)
class ItemSet:
    """Items that ask for one ability.

    Attributes:
        title: one line in words, for a report.
        source: "brought by hybridize", or the path of the file as it was given.
    """

    name: str
    title: str
    items: tuple[Item, ...]
    source: str


def find_items(text: str, base: Path) -> ItemSet:
    """The set that a user names.

    Args:
        text: the name of a set that hybridize brings, which goes first, or a file.
        base: the folder that a relative path starts at.

    Raises:
        HybridizeError: it is neither, or the file has mistakes.
    """
    known = plugin_names("probes")
    if text in known:
        return brought(text)
    file = base / text
    if BARE_WORD.fullmatch(text) and not file.is_file():
        raise HybridizeError(f"no probes and no file '{text}'", fix=did_you_mean(text, known))
    return replace(read_items(file), source=text)


def brought(name: str) -> ItemSet:
    """A set that hybridize brings.

    Raises:
        HybridizeError: there is none of that name.
    """
    module = load_plugin("probes", name)
    return ItemSet(name, module.TITLE, tuple(module.items()), BROUGHT)


def read_items(file: Path, *, name: str | None = None) -> ItemSet:
    """Read a file of items: JSON lines; blank ones and other keys are passed over.

    Args:
        name: of the set; by default that of the file without its ending.

    Raises:
        HybridizeError: the file cannot be read, or holds no items; else all its mistakes.
    """
    items: list[Item] = []
    findings: list[Finding] = []
    for number, line in enumerate(_bytes(file).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            item = _read_line(line, f"{file}:{number}", findings)
            items += [item] if item else []
    if findings:
        raise HybridizeError.of(findings)
    if not items:
        raise HybridizeError("no items: the file is empty", fix=ONE_OBJECT, place=str(file))
    return ItemSet(name or file.stem, f"items of {file.name}", tuple(items), str(file))


def _bytes(file: Path) -> bytes:
    place = str(file)
    listed = ", ".join(plugin_names("probes"))
    if file.is_dir():
        raise HybridizeError("is a folder", fix=f"name a file, or one of: {listed}", place=place)
    if not file.exists():
        raise HybridizeError("no such file", fix=f"name a file, or one of: {listed}", place=place)
    try:
        return file.read_bytes()
    except OSError as error:
        raise HybridizeError(f"cannot be read: {error.strerror or error}", place=place) from None


def _read_line(line: bytes, place: str, findings: list[Finding]) -> Item | None:
    """The item of a line; None where it has mistakes, which are added to `findings`."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"is not UTF-8 text (byte {error.start} of the line)"
        findings.append(Finding(found, "save the file as UTF-8", place))
    except json.JSONDecodeError as error:
        found = f"is not JSON: {error.msg}"
        findings.append(Finding(found, ONE_OBJECT, f"{place}:{error.colno}"))
    except (ValueError, RecursionError):  # a number of thousands of digits, nested without end
        findings.append(Finding("is JSON that cannot be read", ONE_OBJECT, place))
    else:
        mistakes = _mistakes(row, place)
        if not mistakes:
            return Item(row["prompt"], row["answer"])
        findings += mistakes
    return None


def _mistakes(row: Any, place: str) -> list[Finding]:
    if not isinstance(row, dict):
        found = f"is not a JSON object, but of type {type(row).__name__}"
        return [Finding(found, ONE_OBJECT, place)]
    others = [_printable(key) for key in row if key not in FIXES]
    mistakes = []
    for field in FIXES:
        if field not in row:
            fix = did_you_mean(field, others) if others else ONE_OBJECT
            mistakes.append(Finding(f"has no '{field}'", fix, place))
        elif mistake := _mistake(row[field], may_be_space=field == "prompt"):
            mistakes.append(Finding(f"'{field}' {mistake}", FIXES[field], place))
    return mistakes


def _mistake(value: Any, *, may_be_space: bool) -> str | None:
    if not isinstance(value, str):
        return f"is not a string, but of type {type(value).__name__}"
    if not value:
        return "is empty"
    if value.isspace() and not may_be_space:
        return "is white space only"
    if value != _printable(value):
        return "has half a character (a lone surrogate)"
    return None


def _printable(text: str) -> str:
    """The text with what is no character replaced: JSON can spell halves of one."""
    return text.encode("utf-8", "replace").decode()
