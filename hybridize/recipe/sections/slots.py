"""The section `slots`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hybridize.files.yaml_source import Document, Place, as_dict
from hybridize.plugins import plugin_names
from hybridize.recipe.sections.base import DonorName, Mistake, Section
from hybridize.recipe.sections.bridges import BridgeSpec
from hybridize.recipe.sections.fields import Layers


def _allow_a_kind(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(0, {"type": "string", "enum": plugin_names("bridges")})


class ModuleSpec(Section):
    """A sub-module of another donor's layer."""

    donor: Annotated[str, DonorName()] = Field(alias="from")
    layer: int = Field(ge=0)


class SlotSpec(Section):
    """One entry of the stack: layers of one donor, in this order."""

    donor: Annotated[str, DonorName()] = Field(alias="from")
    layers: Layers | None = None
    layer: int | None = Field(None, ge=0)
    mixer: ModuleSpec | None = Field(None, description="takes the place of the layer's mixer")
    mlp: ModuleSpec | None = Field(None, description="takes the place of the layer's MLP")
    bridge: Annotated[BridgeSpec | None, BeforeValidator(BridgeSpec.spelt)] = Field(
        None,
        description="a bridge before the first layer of this entry: its kind, or more of it",
        json_schema_extra=_allow_a_kind,
    )

    @property
    def picks(self) -> list[int]:
        """Layers of the donor, bottom up, counted from 0."""
        return self.layers if self.layers is not None else [self.layer or 0]

    @classmethod
    def mistakes(cls, written: Any, at: Place, document: Document) -> Iterator[Mistake]:
        keys = {key for key, value in as_dict(written).items() if value is not None}
        if isinstance(written, dict) and len(keys & {"layer", "layers"}) != 1:
            found = "both 'layer' and 'layers'" if "layer" in keys else "no layers"
            yield at, found, "write layers: 0-7, or layer: 3 for a single one"
        elif "layers" in keys and keys & {"mixer", "mlp"}:
            part = "mixer" if "mixer" in keys else "mlp"
            yield (
                (*at, part),
                f"'{part}' needs one single layer",
                "write layer: 14, one entry for each slot with a module of another donor",
            )
