"""The section `donors`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from hybridize.files.yaml_source import Document, Place, as_dict
from hybridize.recipe.sections.base import Mistake, Section

DONOR_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class DonorSpec(Section):
    """Where a donor comes from: a model, or a mergekit config that makes one."""

    model: str | None = Field(None, description="a folder (relative to this file) or a hub id")
    revision: str | None = Field(None, description="of a hub id: commit, tag or branch")
    merge: str | None = Field(None, description="a mergekit config; its result is the donor")
    start_token: str = Field(
        "auto",
        min_length=1,
        description=(
            "what stands before each text that is read; auto: what its tokenizer puts there; none; "
            "bos: its BOS token; or a token of its vocabulary"
        ),
    )

    @classmethod
    def mistakes(cls, written: Any, at: Place, document: Document) -> Iterator[Mistake]:
        keys = {key for key, value in as_dict(written).items() if value is not None}
        if isinstance(written, dict) and len(keys & {"model", "merge"}) != 1:
            found = "both 'model' and 'merge'" if "model" in keys else "neither 'model' nor 'merge'"
            yield at, found, "write model: FOLDER-OR-HUB-ID, or merge: MERGEKIT-CONFIG"
