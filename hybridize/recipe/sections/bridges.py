"""The section `bridges`, and bridges of single slots."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from hybridize.plugins import plugin_names
from hybridize.recipe.sections.base import Kind, Section
from hybridize.recipe.sections.fields import Where


class BridgeSpec(Section):
    """What stands where the donor or the width changes."""

    kind: Annotated[
        str,
        Kind("bridges", "bridge kind"),
        WithJsonSchema({"type": "string", "enum": plugin_names("bridges")}),
    ] = "linear"
    init: Literal["auto", "ridge", "procrustes", "identity", "random"] = Field(
        "auto", description="auto: the better of ridge and identity on held-out calibration text"
    )
    norm: bool = Field(False, description="an RMS norm before the map")
    bias: bool = Field(True, description="a bias after the map")
    rank: int | None = Field(
        None, ge=1, description="lowrank: of the map; default: a quarter of the narrower width"
    )
    seed: int = Field(0, ge=0, description="of a random init")

    @classmethod
    def spelt(cls, written: Any) -> Any:
        """A kind alone is short for a bridge of that kind."""
        return {"kind": written} if isinstance(written, str) else written


class BridgesSpec(BridgeSpec):
    """The default bridge, and where bridges stand."""

    where: Where = Field(
        "auto",
        description=(
            "auto: where the width changes, and between donors of different lineage; "
            "width-changes: where the width does; changes: where the donor does; none; "
            "or a list of slots that a bridge stands before"
        ),
    )
