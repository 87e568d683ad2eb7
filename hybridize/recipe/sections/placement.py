"""The section `placement`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hybridize.recipe.sections.base import DonorName, Section
from hybridize.recipe.sections.fields import MOST_SLOTS, Layers


class CandidateSpec(Section):
    """Layers of one donor that may be placed."""

    donor: Annotated[str, DonorName()] = Field(alias="from")
    layers: Layers


class ScoreWeights(Section):
    """What the score of a placement is made of."""

    quality: float = Field(1.0, ge=0, allow_inf_nan=False, description="of the donor")
    stability: float = Field(1.0, ge=0, allow_inf_nan=False, description="of the layer")
    value: float = Field(1.0, ge=0, allow_inf_nan=False, description="of the layer as a block")
    bridge: float = Field(0.1, ge=0, allow_inf_nan=False, description="cost of a bridge")
    fit: float = Field(0.5, ge=0, allow_inf_nan=False, description="cost of what a bridge misses")


class PlacementSpec(Section):
    """What `recommend` may move, and by what it judges."""

    depth: int | None = Field(
        None, ge=1, le=MOST_SLOTS, description="number of slots; default: that of the deepest donor"
    )
    candidates: list[CandidateSpec] = Field([], description="default: all layers of all donors")
    keep_order: bool = Field(True, description="a donor's layers stay in their order")
    max_bridges: int = Field(2, ge=0, description="at most so many changes of donor")
    at_least: int | None = Field(
        None, ge=1, description="slots of each donor in a row; default: half of an equal share"
    )
    top: int = Field(3, ge=1, le=20, description="placements that are assembled and measured")
    weights: ScoreWeights = ScoreWeights()
