"""A recipe, all of its sections together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from hybridize.files.yaml_source import Document, Place
from hybridize.recipe.sections.base import DonorName, Mistake, Section
from hybridize.recipe.sections.bridges import BridgesSpec
from hybridize.recipe.sections.calibration import CalibrationSpec
from hybridize.recipe.sections.cpt import CptSpec
from hybridize.recipe.sections.diagnostics import DiagnosticsSpec
from hybridize.recipe.sections.donors import DONOR_NAME, DonorSpec
from hybridize.recipe.sections.fields import Bytes
from hybridize.recipe.sections.placement import PlacementSpec
from hybridize.recipe.sections.slots import SlotSpec


class Recipe(Section):
    """A whole recipe. `load_recipe` reads one."""

    version: Literal[1] = 1
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    donors: dict[Annotated[str, Field(pattern=DONOR_NAME)], DonorSpec] = Field(min_length=1)
    slots: list[SlotSpec] = Field(
        [], min_length=1, description="from the embedding upwards; without them: recommend"
    )
    embeddings: Annotated[str | None, DonorName()] = Field(
        None, description="a donor; default: that of the first slot"
    )
    head: Annotated[str | None, DonorName()] = Field(
        None, description="donor of final norm and head; default: that of the last slot"
    )
    tokenizer: Annotated[str | None, DonorName()] = Field(
        None, description="a donor; default: that of the embeddings"
    )
    bridges: BridgesSpec = BridgesSpec()
    calibration: CalibrationSpec | None = None
    diagnostics: DiagnosticsSpec = DiagnosticsSpec()
    placement: PlacementSpec | None = None
    cpt: CptSpec | None = None
    target: Literal["auto", "native", "hybrid"] = "auto"
    dtype: Literal["keep", "bfloat16", "float16", "float32"] = "keep"
    shard_size: Bytes = 5 * 10**9

    @classmethod
    def mistakes(cls, written: Any, at: Place, document: Document) -> Iterator[Mistake]:
        if "slots" not in written and "placement" not in written:
            yield at, "'slots' is missing", "add the key 'slots'"

    @property
    def start_token(self) -> str:
        """What stands before text that the result reads: as its tokenizer's donor says."""
        first = self.slots[0].donor if self.slots else next(iter(self.donors))
        return self.donors[self.tokenizer or self.embeddings or first].start_token
