"""The stacks that bridges are measured in, and the donors that they are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hybridize.demo.donors import DONORS, DonorRecipe

OTHER = "qwen-768"  # a donor with a tokenizer of its own, that has seen code alone
VOCABULARY = 768  # of that tokenizer
INITS = ("random", "identity", "procrustes", "ridge", "auto")


@dataclass(frozen=True, eq=False)  # so that it can be a key, whatever its slots are
class Stack:
    """A hybrid, from its first slot upwards; embeddings and head are those of its ends."""

    name: str
    slots: tuple[dict[str, Any], ...]

    @property
    def donors(self) -> list[str]:
        guests = {slot["mixer"]["from"] for slot in self.slots if "mixer" in slot}
        return sorted(guests | {slot["from"] for slot in self.slots})


@dataclass(frozen=True)
class Trial:
    """One build.

    Attributes:
        seed: of the donors, and of random bridges.
        stream: what bridges are fitted to: the hybrid's own states, or a donor's.
    """

    stack: Stack
    seed: int
    init: str
    stream: str = "hybrid"


def donor_recipes(seed: int) -> dict[str, DonorRecipe]:
    """The demo's donors and the one of other tokens, those that train longest first.

    Args:
        seed: 0 for the demo's own.
    """
    qwen = DONORS["qwen"]
    other = DonorRecipe(
        replace(qwen.schedule, mix={"code": 1.0}, seed=5), {**qwen.config, "vocab_size": VOCABULARY}
    )
    recipes = {"llama": DONORS["llama"], "gdn": DONORS["gdn"], "qwen": qwen, OTHER: other}
    return {
        name: replace(recipe, schedule=replace(recipe.schedule, seed=shifted))
        for name, recipe in recipes.items()
        for shifted in [recipe.schedule.seed + 10 * seed]
    }


def _run(donor: str, layers: str) -> dict[str, Any]:
    return {"from": donor, "layers": layers}


def _below(low: str, high: str) -> Stack:
    """The lower half of one below the upper half of another."""
    return Stack(f"{low} below {high}", (_run(low, "0-2"), _run(high, "3-5")))


def _inside_llama(guest: str) -> Stack:
    slots = (_run("llama", "0-1"), _run(guest, "2-3"), _run("llama", "4-5"))
    return Stack(f"{guest} inside llama", slots)


OTHER_WIDTH = (("llama", "qwen"), ("qwen", "llama"), ("llama", "gdn"), ("gdn", "llama"))
SAME_WIDTH = (("qwen", "gdn"), ("gdn", "qwen"))
PAIRS = tuple(_below(*pair) for pair in OTHER_WIDTH + SAME_WIDTH)
SEVERAL = (  # more than one bridge
    _inside_llama("qwen"),
    Stack("gdn, llama, qwen", (_run("gdn", "0-2"), _run("llama", "2-3"), _run("qwen", "3-5"))),
    Stack(
        "gdn's mixers in qwen",
        (
            *({"from": "qwen", "layer": i, "mixer": {"from": "gdn", "layer": i}} for i in (0, 1)),
            _run("qwen", "2-5"),
        ),
    ),
)
OTHER_TOKENS = _inside_llama(OTHER)
STACKS = (*PAIRS, *SEVERAL, OTHER_TOKENS)
