"""Fields of a recipe that have a syntax of their own: ranges of layers, sizes, places, files."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from hybridize.errors import HybridizeError, did_you_mean

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MOST_SLOTS = 10_000


def _mistake(found: str, fix: str) -> PydanticCustomError:
    # The texts travel as context: as a template they would trip over braces in a user's input.
    return PydanticCustomError("recipe", "{found}", {"found": found, "fix": fix})


def _parse_layers(value: Any) -> list[int]:
    """`0-7`, `5`, or a list of both; ranges are inclusive at both ends."""
    parts = value if isinstance(value, list) else [value]
    if not parts:
        raise _mistake("no layers", "write a range such as 0-7, a number, or a list of both")
    layers: list[int] = []
    for part in parts:
        span = _parse_range(part)
        if len(layers) + len(span) > MOST_SLOTS:
            raise _mistake(f"more than {MOST_SLOTS} layers", "check the range")
        layers.extend(span)
    return layers


def _parse_range(part: Any) -> range:
    match = re.fullmatch(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", str(part).strip())
    if match is None or isinstance(part, bool):
        raise _mistake(
            f"'{part}' is not a range of layers",
            "write 0-7 (inclusive at both ends, counted from 0), a number, or a list of both",
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise _mistake(
            f"the range {first}-{last} is reversed",
            f"write {last}-{first}; to reverse the order of the layers, list them one by one",
        )
    return range(first, last + 1)


def parse_bytes(value: Any) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", str(value).strip())
    if match is None or (size := int(float(match[1]) * UNITS[match[2]])) < 1:
        raise _mistake(f"'{value}' is not a size", f"write 5GB, say; units: {', '.join(UNITS)}")
    return size


def parse_size(text: str, option: str) -> int:
    """Bytes, out of an option of the command line."""
    try:
        return parse_bytes(text)
    except PydanticCustomError as error:
        found = (error.context or {})["found"]
        fix = (error.context or {})["fix"]
        raise HybridizeError(f"{option}: {found}", fix=fix) from None


def parse_time(text: str, option: str) -> int:
    """Seconds, out of an option of the command line."""
    if not re.fullmatch(r"[1-9]\d{0,5}\s*[smh]", text.strip()):
        raise HybridizeError(f"{option}: '{text}' is not a time", fix="write 30s, 10m or 1h, say")
    return seconds_of(text)


SECONDS = {"s": 1, "m": 60, "h": 3600}


def _parse_every(value: Any) -> Any:
    """A number of steps, or a time: 10m."""
    is_steps = type(value) is int and value >= 1
    is_time = isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,5}\s*[smh]", value.strip())
    if not is_steps and not is_time:
        raise _mistake(
            f"'{value}' is not an interval", "write a number of steps, or a time: 30s, 10m, 1h"
        )
    return value


def _parse_measure(value: Any) -> Any:
    """Whether to measure, or on how many tokens."""
    if not isinstance(value, bool) and not (type(value) is int and value >= 1):
        raise _mistake(
            f"'{value}' is neither true, false nor a number of tokens", "write one of these"
        )
    return value


def seconds_of(time: str) -> int:
    """Seconds of a time such as 10m, which `Every` has checked."""
    return int(time.strip()[:-1]) * SECONDS[time.strip()[-1]]


Layers = Annotated[
    list[int],
    BeforeValidator(_parse_layers),
    WithJsonSchema(
        {
            "description": "0-7 is eight layers, counted from 0; a number; or a list of both",
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^\d+(\s*-\s*\d+)?$"},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "anyOf": [
                            {"type": "integer", "minimum": 0},
                            {"type": "string", "pattern": r"^\d+(\s*-\s*\d+)?$"},
                        ]
                    },
                },
            ],
        }
    ),
]
Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?\s*[KMG]i?B$"}),
]

Measure = Annotated[
    bool | int,
    BeforeValidator(_parse_measure),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 1}]}),
]
Every = Annotated[
    int | str,
    BeforeValidator(_parse_every),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^[1-9]\d*\s*[smh]$"},
            ]
        }
    ),
]


PLACES = ("auto", "changes", "width-changes", "none")


def _parse_where(value: Any) -> Any:
    """A rule, or slots that a bridge stands before."""
    if isinstance(value, list):
        for item in value:
            if item != "head" and (type(item) is not int or item < 0):
                raise _mistake(f"'{item}' is not a slot", "slots are counted from 0; or write head")
    elif value not in PLACES:
        raise _mistake(
            f"unknown where '{value}'",
            f"{did_you_mean(str(value), PLACES)}, or a list of slots",
        )
    return value


Where = Annotated[
    str | list[int | str],
    BeforeValidator(_parse_where),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(PLACES)},
                {
                    "type": "array",
                    "items": {"anyOf": [{"type": "integer", "minimum": 0}, {"const": "head"}]},
                },
            ]
        }
    ),
]


GLOB = re.compile(r"[*?\[]")


def _parse_files(value: Any) -> list[str]:
    """One file or several, each of which may be a pattern."""
    files = value if isinstance(value, list) else [value]
    wrong = [file for file in files if not isinstance(file, str) or not file.strip()]
    if wrong or not files:
        found = f"{wrong[0]!r:.60} is not a file" if wrong else "no files"
        raise _mistake(found, "write texts/a.txt, a pattern such as src/**/*.py, or a list of both")
    return files


Files = Annotated[
    list[str],
    BeforeValidator(_parse_files),
    WithJsonSchema(
        {
            "description": "relative to this file; * ? [] ** stand for parts of names",
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
            ],
        }
    ),
]


def text_entry(value: Any) -> Any:
    """An entry of text as a mapping with a name, where it can be read as one.

    A string is short for files. A text without a name is called after what it is read from: the
    first file's stem, the folder of a pattern, the last part of a data set's id.
    """
    entry = {"files": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or entry.get("name") not in (None, ""):
        return entry
    files = entry.get("files")
    source = files[0] if isinstance(files, list) and files else files or entry.get("dataset")
    parts = PurePosixPath(str(source)).parts
    plain = [part for part in parts if not GLOB.search(part) and part not in ("/", ".", "..")]
    name = plain[-1] if plain else "text"
    is_file = entry.get("files") and plain and name == parts[-1]
    return {**entry, "name": (name.split(".")[0] or name) if is_file else name}
