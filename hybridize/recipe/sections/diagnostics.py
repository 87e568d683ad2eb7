"""The section `diagnostics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema, model_validator

from hybridize.files.yaml_source import Document, Place, as_dict, as_list
from hybridize.plugins import plugin_names
from hybridize.recipe.sections.base import Kind, Mistake, Section


def _allow_a_kind(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    schema.clear()
    kind = {"type": "string", "enum": plugin_names("perturbations"), "description": "its kind"}
    schema["anyOf"] = [kind, mapping]


class PerturbationSpec(Section):
    """One way of perturbing a layer."""

    model_config = ConfigDict(json_schema_extra=_allow_a_kind)

    kind: Annotated[
        str,
        Kind("perturbations", "perturbation"),
        WithJsonSchema({"type": "string", "enum": plugin_names("perturbations")}),
    ] = "dropout"
    strength: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="default: that of the kind"
    )

    @classmethod
    def spelt(cls, written: Any) -> Any:
        """A kind alone is short for a perturbation of that kind."""
        return {"kind": written} if isinstance(written, str) else written

    @model_validator(mode="before")
    @classmethod
    def _spelt(cls, value: Any) -> Any:
        return cls.spelt(value)


class DiagnosticsSpec(Section):
    """What `diagnose` measures, on the text of `calibration`."""

    probes: list[str] | None = Field(
        None,
        description="sets that hybridize brings, or files; default: all that it brings",
    )
    perturbations: list[PerturbationSpec] = Field([PerturbationSpec()], min_length=1)
    parts: list[Literal["layer", "mixer", "mlp"]] | None = Field(
        None,
        min_length=1,
        description=(
            "of a layer, perturbed alone; default: all three where tokens are given; else the "
            "layer, and all three of the layers that may be the most sensitive"
        ),
    )
    perturb: Literal["text", "all"] = Field(
        "text", description="what runs through perturbed layers: text alone, or probes as well"
    )
    seeds: int | None = Field(
        None, ge=1, le=100, description="of perturbations by chance; default: 3, or what fits"
    )
    tokens: int = Field(5120, ge=64, description="of text, over all domains; half is scored")
    perturbed: int | None = Field(
        None,
        ge=32,
        description=(
            "tokens of the scored text that are perturbed; default: all where tokens or parts are "
            "given, else what fits into the budget"
        ),
    )
    length: int = Field(128, ge=8, description="tokens of a stretch of text")

    @classmethod
    def mistakes(cls, written: Any, at: Place, document: Document) -> Iterator[Mistake]:
        seen: set[str] = set()
        for i, entry in enumerate(as_list(as_dict(written).get("perturbations"))):
            kind = str(as_dict(PerturbationSpec.spelt(entry)).get("kind", "dropout"))
            if kind in seen and kind in plugin_names("perturbations"):
                here = (*at, "perturbations", i)
                found = f"perturbation '{kind}' stands twice"
                yield here, found, "write it once, with one strength"
            seen.add(kind)

    @property
    def by_budget(self) -> bool:
        """Whether all layers are measured coarsely, and finer where it decides something."""
        given = {"tokens", "parts"} & self.model_fields_set
        return self.parts is None and (self.perturbed is not None or not given)
