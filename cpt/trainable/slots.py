"""Train `slots`: slots by their numbers."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.errors import HybridizeError
from hybridize.recipe.sections.fields import Layers

_LAYERS: TypeAdapter[list[int]] = TypeAdapter(Layers)

TITLE = "slots by their numbers"
VALUE = "a range such as 0-3 (inclusive at both ends, from 0), a number, or a list of both"


def names(stack: ModelTensors, value: Any) -> list[str]:
    """Raises HybridizeError for what is no range, and for slots that are not there."""
    try:
        wanted = _LAYERS.validate_python(value)
    except ValidationError as error:
        context = error.errors()[0].get("ctx", {})
        found, fix = (str(context[key]).replace("layers", "slots") for key in ("found", "fix"))
        raise HybridizeError(found, fix=fix.partition(";")[0]) from None
    wrong = sorted(slot for slot in set(wanted) if slot >= stack.depth)
    if wrong:
        listed = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise HybridizeError(
            f"there is no slot {listed}: the model has {stack.depth}",
            fix=f"its slots are 0-{stack.depth - 1}, counted from 0, inclusive at both ends",
        )
    return stack.slot_names(set(wanted))
