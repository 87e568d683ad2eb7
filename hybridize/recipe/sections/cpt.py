"""The section `cpt`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from hybridize.files.yaml_source import Document, Place, as_dict
from hybridize.recipe.sections.base import Mistake, Section
from hybridize.recipe.sections.fields import Every
from hybridize.recipe.sections.text import TextSpec, namesakes


class TrainingText(Section):
    """The text of a training."""

    new: list[TextSpec] = Field(min_length=1, description="what the model is to learn")
    old: list[TextSpec] = Field([], description="what it is to keep: replayed, and measured")
    replay: float = Field(
        0.1, ge=0, lt=1, allow_inf_nan=False, description="share of the tokens that are old"
    )

    @classmethod
    def mistakes(cls, written: Any, at: Place, document: Document) -> Iterator[Mistake]:
        yield from namesakes(as_dict(written).get("new"), (*at, "new"), document)
        yield from namesakes(as_dict(written).get("old"), (*at, "old"), document)


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

    RENAMED: ClassVar[Mapping[str, str]] = {
        "at_once": "micro_batch_size",
        "checkpointing": "gradient_checkpointing",
        "clip": "max_grad_norm",
        "rates": "learning_rates",
        "warmup": "warmup_ratio",
    }

    train: Train = ["bridges", {"shallow": 0.25}]
    stages: list[StageSpec] = Field([], description="one after the other, instead of `train`")
    data: TrainingText | None = None
    tokens: int = Field(1_000_000, ge=1, description="of the whole training")
    length: int = Field(512, ge=2, description="tokens of a row")
    batch: int = Field(8, ge=1, description="rows of a step, on all processes together")
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows that a process runs at a time; default: all of its rows"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="highest, of AdamW; default: by role and by how much learns, as forecast shows",
    )
    learning_rates: dict[
        Literal["embeddings", "slot", "bridge", "norm", "head", "other"],
        Annotated[float, Field(gt=0, allow_inf_nan=False)],
    ] = Field({}, description="learning rates of roles that have one of their own")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        "cosine",
        description="after the warm-up: cosine to a tenth; wsd: constant, and the last tenth falls",
    )
    warmup_ratio: float = Field(0.02, ge=0, lt=1, description="share of a stage's steps")
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="norm of the gradient, at most"
    )
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
    gradient_checkpointing: bool = Field(
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
