"""The sections of a recipe: what a user can ask for.

One model per section, strict about its keys, which also yields the JSON schema for editors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from hybridize.plugins import plugin_names
from hybridize.recipe.fields import (
    MOST_SLOTS,
    Bytes,
    Every,
    Files,
    Layers,
    Measure,
    Where,
    text_entry,
)

DONOR_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DonorSpec(Section):
    """Where a donor comes from: a model, or a mergekit config that makes one."""

    model: str | None = Field(None, description="a folder (relative to this file) or a hub id")
    revision: str | None = Field(None, description="of a hub id: commit, tag or branch")
    merge: str | None = Field(None, description="a mergekit config; its result is the donor")
    start_token: str = Field(
        "auto",
        min_length=1,
        description=(
            "what stands before each text that is read; auto: what its tokenizer puts there; none; "
            "bos: its BOS token; or a token of its vocabulary"
        ),
    )


class ModuleSpec(Section):
    """A sub-module of another donor's layer."""

    donor: str = Field(alias="from")
    layer: int = Field(ge=0)


class BridgeSpec(Section):
    """What stands where the donor or the width changes."""

    kind: Annotated[str, WithJsonSchema({"type": "string", "enum": plugin_names("bridges")})] = (
        "linear"
    )
    init: Literal["auto", "ridge", "procrustes", "identity", "random"] = Field(
        "auto", description="auto: the better of ridge and identity on held-out calibration text"
    )
    norm: bool = Field(False, description="an RMS norm before the map")
    bias: bool = Field(True, description="a bias after the map")
    rank: int | None = Field(
        None, ge=1, description="lowrank: of the map; default: a quarter of the narrower width"
    )
    seed: int = Field(0, ge=0, description="of a random init")


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


def bridge_shorthand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _allow_shorthand(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(0, {"type": "string", "enum": plugin_names("bridges")})


class SlotSpec(Section):
    """One entry of the stack: layers of one donor, in this order."""

    donor: str = Field(alias="from")
    layers: Layers | None = None
    layer: int | None = Field(None, ge=0)
    mixer: ModuleSpec | None = Field(None, description="takes the place of the layer's mixer")
    mlp: ModuleSpec | None = Field(None, description="takes the place of the layer's MLP")
    bridge: Annotated[BridgeSpec | None, BeforeValidator(bridge_shorthand)] = Field(
        None,
        description="a bridge before the first layer of this entry: its kind, or more of it",
        json_schema_extra=_allow_shorthand,
    )

    @property
    def picks(self) -> list[int]:
        """Layers of the donor, bottom up, counted from 0."""
        return self.layers if self.layers is not None else [self.layer or 0]


def _allow_a_string(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "description": "short for files"}, mapping]


class TextSpec(Section):
    """Text of one domain: files, or a data set of the hub."""

    model_config = ConfigDict(json_schema_extra=_allow_a_string)

    name: str = Field("", description="of the domain; default: after its first file")
    files: Files | None = None
    dataset: str | None = Field(
        None, description="a data set of the hub, or a folder (relative to this file)"
    )
    subset: str | None = Field(None, description="of a data set")
    revision: str | None = Field(None, description="of a data set: commit, tag or branch")
    split: str = Field("train", description="of a data set")
    field: str = Field("text", description="of a row (JSON lines, parquet, data set): its text")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="share of the tokens, relative to other domains"
    )

    @model_validator(mode="before")
    @classmethod
    def _entry(cls, value: Any) -> Any:
        return text_entry(value)


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


def _perturbation_shorthand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _allow_a_kind(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    schema.clear()
    kind = {"type": "string", "enum": plugin_names("perturbations"), "description": "its kind"}
    schema["anyOf"] = [kind, mapping]


class PerturbationSpec(Section):
    """One way of perturbing a layer."""

    model_config = ConfigDict(json_schema_extra=_allow_a_kind)

    kind: Annotated[
        str, WithJsonSchema({"type": "string", "enum": plugin_names("perturbations")})
    ] = "dropout"
    strength: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="default: that of the kind"
    )

    @model_validator(mode="before")
    @classmethod
    def _entry(cls, value: Any) -> Any:
        return _perturbation_shorthand(value)


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

    @property
    def by_budget(self) -> bool:
        """Whether all layers are measured coarsely, and finer where it decides something."""
        given = {"tokens", "parts"} & self.model_fields_set
        return self.parts is None and (self.perturbed is not None or not given)


class CandidateSpec(Section):
    """Layers of one donor that may be placed."""

    donor: str = Field(alias="from")
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


class TrainingText(Section):
    """The text of a training."""

    new: list[TextSpec] = Field(min_length=1, description="what the model is to learn")
    old: list[TextSpec] = Field([], description="what it is to keep: replayed, and measured")
    replay: float = Field(
        0.1, ge=0, lt=1, allow_inf_nan=False, description="share of the tokens that are old"
    )


AUTO = "auto"


def _train_shorthand(value: Any) -> Any:
    return [value] if value == AUTO else value


def _allow_auto(schema: dict[str, Any]) -> None:
    mapping = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "const": AUTO}, mapping]


Train = Annotated[
    list[str | dict[str, Any]],
    BeforeValidator(_train_shorthand),
    Field(
        min_length=1,
        description=(
            "what learns: bridges, {shallow: 0.25}, ...; they add up. auto: bridges, and the slots "
            "that the prior names after a diagnosis"
        ),
        json_schema_extra=_allow_auto,
    ),
]


class StageSpec(Section):
    """A part of a training, with a warm-up of its own."""

    train: Train
    share: float = Field(gt=0, le=1, allow_inf_nan=False, description="of the training's tokens")


class GuardsSpec(Section):
    """What a training is stopped for, or warned of."""

    rise: float | None = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="nats per token by which the loss on old text may rise",
    )
    then: Literal["warn", "stop"] = Field("warn", description="when it has risen by more")
    spike: float | None = Field(
        3.0,
        gt=0,
        allow_inf_nan=False,
        description="nats per token by which a step's loss may exceed the median of those before",
    )


class CptSpec(Section):
    """Continued pre-training of the built model, with only what should learn unfrozen."""

    train: Train = ["bridges", {"shallow": 0.25}]
    stages: list[StageSpec] = Field([], description="one after the other, instead of `train`")
    data: TrainingText | None = None
    tokens: int = Field(1_000_000, ge=1, description="of the whole training")
    length: int = Field(512, ge=2, description="tokens of a row")
    batch: int = Field(8, ge=1, description="rows of a step, on all processes together")
    at_once: int | None = Field(
        None, ge=1, description="rows that a process runs at a time; default: all of its rows"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="highest, of AdamW; default: by role and by how much learns, as forecast shows",
    )
    rates: dict[
        Literal["embeddings", "slot", "bridge", "norm", "head", "other"],
        Annotated[float, Field(gt=0, allow_inf_nan=False)],
    ] = Field({}, description="learning rates of roles that have one of their own")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        "cosine",
        description="after the warm-up: cosine to a tenth; wsd: constant, and the last tenth falls",
    )
    warmup: float = Field(0.02, ge=0, lt=1, description="share of a stage's steps")
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False, description="norm of the gradient, at most")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="share of what each slot that learns adds to the stream, left out by chance; "
        "that of the donors' configs is off",
    )
    average: int = Field(
        1, ge=1, description="checkpoints, the last of each stage, whose mean is its result"
    )
    checkpointing: bool = Field(
        False, description="keep less for the backward pass, and compute it again"
    )
    cache_prefix: Literal["auto"] | bool = Field(
        "auto",
        description=(
            "keep on disk what arrives at the first part that learns; auto: where bridges alone "
            "learn and text comes again"
        ),
    )
    compile: bool = Field(False, description="slots by torch.compile")
    evaluate_every: int | None = Field(
        None, ge=1, description="steps; default: a tenth of all, fewer where that would be dear"
    )
    evaluate_tokens: int | None = Field(
        None,
        ge=0,
        le=65_536,
        description="of held-out text of each source, before and after, and an eighth of them in "
        "between; default: a twentieth of tokens, 1,024 to 65,536; 0: nothing is measured",
    )
    save_every: Every = Field("10m", description="steps between checkpoints, or time: 30s, 10m, 1h")
    guards: GuardsSpec = GuardsSpec()
    seed: int = Field(0, ge=0, le=2**31)


class Recipe(Section):
    """A whole recipe. `load_recipe` reads one."""

    version: Literal[1] = 1
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    donors: dict[Annotated[str, Field(pattern=DONOR_NAME)], DonorSpec] = Field(min_length=1)
    slots: list[SlotSpec] = Field(
        [], min_length=1, description="from the embedding upwards; without them: recommend"
    )
    embeddings: str | None = Field(None, description="a donor; default: that of the first slot")
    head: str | None = Field(
        None, description="donor of final norm and head; default: that of the last slot"
    )
    tokenizer: str | None = Field(None, description="a donor; default: that of the embeddings")
    bridges: BridgesSpec = BridgesSpec()
    calibration: CalibrationSpec | None = None
    diagnostics: DiagnosticsSpec = DiagnosticsSpec()
    placement: PlacementSpec | None = None
    cpt: CptSpec | None = None
    target: Literal["auto", "native", "hybrid"] = "auto"
    dtype: Literal["keep", "bfloat16", "float16", "float32"] = "keep"
    shard_size: Bytes = 5 * 10**9

    @property
    def start_token(self) -> str:
        """What stands before text that the result reads: as its tokenizer's donor says."""
        first = self.slots[0].donor if self.slots else next(iter(self.donors))
        return self.donors[self.tokenizer or self.embeddings or first].start_token
