"""Text, wherever a recipe names some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from hybridize.files.yaml_source import Document, Place, as_dict, as_list
from hybridize.recipe.sections.base import Mistake, Section
from hybridize.recipe.sections.fields import Files, text_entry


def _allow_a_string(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "description": "short for files"}, mapping]


class TextSpec(Section):
    """Text of one domain: files, or a data set of the hub."""

    model_config = ConfigDict(json_schema_extra=_allow_a_string)

    name: str = Field("", description="of the domain; default: after its first file")
    files: Files | None = None
    dataset: str | None = Field(
        None, description="a data set of the hub, or a folder (relative to this file)"
    )
    subset: str | None = Field(None, description="of a data set")
    revision: str | None = Field(None, description="of a data set: commit, tag or branch")
    split: str = Field("train", description="of a data set")
    field: str = Field("text", description="of a row (JSON lines, parquet, data set): its text")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="share of the tokens, relative to other domains"
    )

    @classmethod
    def spelt(cls, written: Any) -> Any:
        """With the name that it has where none is written; a string is short for files."""
        return text_entry(written)

    @model_validator(mode="before")
    @classmethod
    def _spelt(cls, value: Any) -> Any:
        return cls.spelt(value)

    @classmethod
    def mistakes(cls, written: Any, at: Place, document: Document) -> Iterator[Mistake]:
        entry = as_dict(cls.spelt(written))
        keys = {key for key, value in entry.items() if value is not None}
        if entry and len(keys & {"files", "dataset"}) != 1:
            both = "files" in keys
            found = "both 'files' and 'dataset'" if both else "neither 'files' nor 'dataset'"
            yield at, found, "write files: FILE-OR-PATTERN, or dataset: HUB-ID"
        elif "files" in keys:
            for key in ("subset", "split", "revision"):
                if key in keys:
                    found = f"files have no {key}"
                    yield (*at, key), found, f"remove the key {key}, or write dataset: HUB-ID"


def namesakes(written: Any, at: Place, document: Document) -> Iterator[Mistake]:
    """Of a list of text: domains that are called like another."""
    first: dict[str, Place] = {}
    for i, item in enumerate(as_list(written)):
        name, here = as_dict(TextSpec.spelt(item)).get("name"), (*at, i)
        if isinstance(name, str) and name in first:
            line, _ = document.position(first[name])
            found = f"a second domain is called '{name}' (first in line {line})"
            yield (*here, "name"), found, "write another name: {name: NAME, files: ...}"
        elif isinstance(name, str):
            first[name] = here
