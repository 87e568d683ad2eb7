"""From what a recipe says of a donor to its folder: found, fetched, or merged first."""

from __future__ import annotations

from dataclasses import replace

from hybridize.assembler.merge.merging import merged_donor
from hybridize.model.donors import Donor, load_donor, locate
from hybridize.recipe.file import RecipeFile


def resolve_donor(
    recipe: RecipeFile, name: str, *, offline: bool = False, weights: bool = True
) -> Donor:
    """Find a donor of a recipe, fetching or merging it if need be, and read its headers.

    Args:
        weights: False if the headers of a model of the hub will do.

    Raises:
        HybridizeError: it cannot be found, is broken, or the runtime cannot reproduce it.
    """
    spec = recipe.recipe.donors[name]
    place = recipe.place("donors", name)
    if spec.merge is not None:
        merged = merged_donor(recipe.path(spec.merge), place=place, offline=offline)
        donor = load_donor(merged.folder, name=name, source=spec.merge, place=place)
        return replace(donor, merge=merged.record, start_token=spec.start_token)
    folder, commit = locate(
        spec.model or "",
        revision=spec.revision,
        base=recipe.path("."),
        place=place,
        offline=offline,
        weights=weights,
    )
    donor = load_donor(folder, name=name, source=spec.model or "", commit=commit, place=place)
    return replace(donor, start_token=spec.start_token)
