"""The section `calibration`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from hybridize.files.yaml_source import Document, Place, as_dict
from hybridize.recipe.sections.base import Mistake, Section
from hybridize.recipe.sections.fields import Measure
from hybridize.recipe.sections.text import TextSpec, namesakes


class CalibrationSpec(Section):
    """The text that bridges are fitted to and judged by."""

    data: list[TextSpec] = Field(
        [], min_length=1, description="default: text that hybridize brings, prose and code"
    )
    tokens: int | None = Field(
        None, ge=1, description="of all domains together; a fifth of them is held out"
    )
    length: int = Field(512, ge=8, description="tokens of a sequence")
    seed: int = Field(0, ge=0, description="of the order of the documents")
    stream: Literal["hybrid", "donor"] = Field(
        "hybrid",
        description="what bridges are fitted to: the hybrid's own hidden states, or its donor's",
    )
    measure: Measure = Field(
        True,
        description=(
            "losses of the result and its controls on what is held out; a number: on so many of "
            "its tokens; false: not at all"
        ),
    )

    @classmethod
    def mistakes(cls, written: Any, at: Place, document: Document) -> Iterator[Mistake]:
        yield from namesakes(as_dict(written).get("data"), (*at, "data"), document)
