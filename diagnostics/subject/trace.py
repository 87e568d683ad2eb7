"""The trace: what a diagnosis found, as it is written to trace.json. No torch.

Slots count from 0. A depth counts layers: depth 0 is the embedding, depth d the state behind slot
d - 1. Divergences and losses are in nats. `None` stands for what could not be measured.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ALL_TEXT = "all text"  # what a curve is on that takes all domains together

#: What the words of a trace mean.
DEFINITIONS = {
    "sensitivity": "mean Jensen-Shannon divergence between the model's next-token distributions "
    "without and with one layer (or its mixer, or its MLP) perturbed, over scored positions of "
    "held-out text and over seeds; in nats, at most ln 2",
    "low, high": "interval of 90 %, over stretches of text and, where a perturbation draws, over "
    "seeds, by the t distribution of each; none for one draw or one stretch",
    "agreement": "share of the resamples from those distributions in which the same layer is the "
    "most sensitive",
    "spread": "largest sensitivity of a layer over the smallest",
    "vulnerable": "the layer of the largest sensitivity; undecided where the spread is below 2 or "
    "the agreement below 0.8, and always for one draw of a random perturbation",
    "loss_rise": "mean rise of the loss at the scored positions when the layer is perturbed",
    "value": "loss_rise with the layer replaced by the linear map that comes closest to it",
    "logit lens": "final norm and head, applied to the stream at a depth as it is",
    "ridge lens": "the same behind an affine map from that depth's stream to the last one's, "
    "fitted by ridge regression on text that is not scored",
    "particle": "task particle: on items that the model answers correctly, the first depth from "
    "which on at least half of the rise of log p(answer) from its base to the last depth is there "
    "for good; the median over items. Undecided with fewer than 5 correct items or fewer than 5 on "
    "which p(answer) rises, where accuracy is not two standard errors above chance, or where the "
    "lenses differ by more than a quarter of the depth",
    "base": "p(answer) of a model that knows the set and not the item: the last depth's "
    "distribution, averaged over all items of the set; here the mean over correct items",
    "jump": "depth behind the layer that raises p(answer) most; here and in the next two it is "
    "what p(answer) lies above its base, nothing where it lies below; mean over items",
    "absolute": "first depth at which it is 0.1",
    "outstanding": "first depth whose jump lies two standard deviations above the mean jump",
    "chance": "share of the commonest answer token: what always saying one thing would score",
    "influence": "block influence: 1 - cosine between what a layer is given and what it gives",
    "angle": "angle between the two, in units of pi",
    "growth": "RMS of what a slot gives over the RMS of what arrives at it, before its bridge; "
    "median over tokens, mean over stretches",
    "entropy": "of the next-token distribution read out at a depth",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Slot(_Part):
    """One layer of the model: where it comes from, and what it is made of."""

    slot: int
    donor: str
    layer: int  # of the donor
    mixer: str | None  # name of its module, or of several; None: none that can be told
    mlp: str | None
    width: int
    bridge: bool  # whether a bridge stands before it
    parameters: int


class Model(_Part):
    """What was diagnosed."""

    name: str
    source: str  # a folder or hub id, as it was given
    commit: str | None
    model_type: str
    vocabulary: int
    dtype: str
    parameters: int
    hybrid: bool
    files: dict[str, str]  # BLAKE3 of the weight files, by name


class Perturbation(_Part):
    kind: str
    strength: float
    title: str
    seeds: int


class Refined(_Part):
    """What was measured a second time, with more seeds, since it decides something."""

    slots: list[int]
    seeds: int


class Settings(_Part):
    """How the measuring was done."""

    perturbations: list[Perturbation]
    parts: list[str]
    tokens: int  # of text asked for, over all domains
    length: int  # of a stretch, in tokens
    seed: int
    perturb: Literal["text", "all"]  # what runs through perturbed layers
    resamples: int
    level: float
    share: float  # of the rise of log p, for a task particle
    lens_tokens: int
    device: str
    compute_dtype: str | None = None  # that the model computed in; None: as it is stored
    start_token: str | None = None  # what stood before each text, or "none"; None: not noted
    perturbed: int | None = None  # tokens of the scored text that were perturbed; None: all
    refined: Refined | None = None  # mixers and MLPs were measured in these slots alone


class Lens(_Part):
    """What one lens sees of a set, on the items that the model answers correctly.

    The lists have one entry for each depth.
    """

    p: list[float | None]
    logp: list[float | None]
    entropy: list[float | None]  # over all items
    particle: float | None
    quartiles: list[float] | None
    jump: int | None
    absolute: int | None
    outstanding: int | None


class Set(_Part):
    """A set of probe items, or the scored positions of a domain of text."""

    name: str
    kind: Literal["task", "text"]
    title: str
    source: Any
    blake3: str
    items: int
    readable: int  # by the model's tokenizer
    correct: int
    accuracy: float | None
    chance: float | None
    base: float | None  # p(answer) if the item is not known, mean over the correct ones
    lenses: dict[str, Lens]
    particle: float | None  # decided: see `why`
    lenses_differ: bool  # by more than a quarter of the depth
    why: str

    @property
    def quartiles(self) -> list[float] | None:
        """Of the particles of single items, by the lens that decided; None: undecided."""
        found = (lens.quartiles for lens in self.lenses.values() if lens.quartiles is not None)
        return None if self.particle is None else next(found, None)


def clearly_above(accuracy: float, chance: float, num: int) -> bool:
    """Whether an accuracy over so many items is two standard errors above chance."""
    return accuracy - chance >= 2 * math.sqrt(chance * (1 - chance) / num)


class Curve(_Part):
    """Sensitivity of all slots to one perturbation of one part; lists by slot."""

    on: str  # "all text", or the name of one set
    kind: str
    part: str
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]
    loss_rise: list[float | None]
    loss_error: list[float | None]  # standard error of `loss_rise`, over stretches and seeds
    agreement: float | None
    spread: float | None  # None: some layer does nothing at all, and others do
    vulnerable: int | None
    why: str


class Flow(_Part):
    """What the slots do to the stream of the text: means, by slot."""

    influence: list[float]
    angle: list[float]
    growth: list[float]


class Loss(_Part):
    """Loss on held-out text."""

    per_byte: float
    error: float  # standard error of `per_byte` over stretches of text
    per_token: float
    tokens: int
    bytes: int
    stretches: list[float]  # summed loss of each stretch, in nats


class Boundary(_Part):
    """Where freezing may begin, by the prior: train the slots below, freeze the others."""

    slots: int
    why: str


class Trace(_Part):
    """One model's diagnosis."""

    model: Model
    slots: list[Slot]
    settings: Settings
    sets: list[Set]
    curves: list[Curve]
    flow: Flow
    lens_r2: list[float | None]  # of the ridge lens, by depth
    losses: dict[str, Loss]  # by domain
    boundary: Boundary | None
    layer_tokens: int
    naive_layer_tokens: int

    @property
    def headline(self) -> Curve:
        """The curve that the first perturbation gives of the first part, on all text."""
        return self.curves[0]

    def curve(self, kind: str, part: str = "layer", on: str = ALL_TEXT) -> Curve:
        """One of the curves.

        Raises:
            KeyError: it was not measured.
        """
        for curve in self.curves:
            if (curve.kind, curve.part, curve.on) == (kind, part, on):
                return curve
        raise KeyError((kind, part, on))


class Document(_Part):
    """trace.json."""

    format: Literal[2] = 2
    hybridize: str  # version
    versions: dict[str, str]
    definitions: dict[str, str] = DEFINITIONS
    models: list[Trace]


def read_document(file: Path) -> Document:
    return Document.model_validate_json(file.read_text(encoding="utf-8"))


def trace_schema() -> dict[str, Any]:
    """JSON schema of trace.json (docs/trace.schema.json)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Document.model_json_schema(),
        "title": "hybridize trace",
    }
