"""Models whose right answer is known by construction: they pin what our definitions mean.

Most are real models of transformers whose weights were written by hand. Where no real layer does
what is wanted (repair, rotate), a small module stands in the place of one of a real Llama's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.naive_forwards import layers_of
from hybridize.architectures.residual import is_output
from hybridize.diagnostics.measure import measures
from hybridize.diagnostics.measure.measures import LN2, jensen_shannon
from hybridize.diagnostics.measure.scoring import curves_of, set_of
from hybridize.diagnostics.measure.sheets import Points, Sheet
from hybridize.diagnostics.measure.sweep import Swept, sweep
from hybridize.diagnostics.measure.variants import PARTS, Variant, all_variants
from hybridize.diagnostics.subject.trace import Curve, Set
from hybridize.model.anatomy import MIXERS, MLPS
from hybridize.model.donors import load_donor
from hybridize.torch_model.loading import Parts, Weights
from tests.support.readers import in_another_basis
from tests.support.stacks import load
from tests.support.tiny import FAMILIES, tiny_model

WIDTH, VOCABULARY, DEPTH = 32, 64, 4


# ---- Asking a model ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What one sweep says: of text, and of one task on the same rows."""

    points: list[Points]
    swept: Swept
    variants: list[Variant]

    @property
    def js(self) -> Tensor:
        """Mean over the task's points, (W, L)."""
        js = self.swept.read[1].js
        assert js is not None
        return js.mean(2)

    @property
    def task(self) -> Set:
        told: dict[str, Any] = {"title": "", "source": "", "blake3": "", "chance": None}
        return set_of(self.points[1], self.swept.read[1], items=len(self.points[1]), **told)

    def particle(self, lens: str = "logit") -> float | None:
        return self.task.lenses[lens].particle

    def p(self, lens: str) -> list[float]:
        found = self.task.lenses[lens].p
        return [value for value in found if value is not None]

    def curve(self, kind: str = "skip") -> Curve:
        curves = curves_of(self.points, self.swept, self.variants)
        return next(c for c in curves if (c.on, c.kind, c.part) == ("all text", kind, "layer"))


def ask(
    parts: Parts,
    tokens: Tensor,
    targets: Tensor,
    variants: Sequence[Variant] = (Variant("skip", 1.0),),
    *,
    places: Tensor | None = None,
    lens: Tensor | None = None,
) -> Found:
    """Sweep some rows.

    Args:
        targets: what follows each position, (batch, tokens).
        places: which positions are items, a mask; all.
        lens: rows that lenses are fitted to.
    """
    rows, columns = (torch.ones_like(tokens) if places is None else places).nonzero().unbind(1)
    size = torch.full((len(tokens),), tokens.shape[1])
    members = torch.arange(len(rows))
    answers = targets[rows, columns]
    points = [Points("text", "text", rows, answers), Points("task", "task", members, answers)]
    sheets = [Sheet(tokens, size, rows, columns, i, members, perturbed=True) for i in (0, 1)]
    if lens is not None:
        at, column = torch.ones_like(lens).nonzero().unbind(1)
        sizes = torch.full((len(lens),), lens.shape[1])
        sheets.append(Sheet(lens, sizes, at, column, None, at, perturbed=False))
    found = sweep(parts, sheets, points, variants, memory=1 << 40, progress=lambda *_: None)
    return Found(points, found, list(variants))


def opened(model: PreTrainedModel, folder: Path) -> Parts:
    """A model by way of the disk, as our engine runs it."""
    model.save_pretrained(folder)
    donor = load_donor(folder, name="only", source="only", place="only")
    return Weights({"only": donor}).parts("only", streamed=False)


def some_tokens(num_rows: int = 2, num_tokens: int = 12, seed: int = 1) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randint(3, 60, (num_rows, num_tokens), generator=generator)


# ---- Blocks that do nothing -------------------------------------------------------------------


@torch.no_grad()
def silence_(layer: nn.Module) -> None:
    """Nothing that a layer finds is written into the stream."""
    outputs = [parameter for name, parameter in layer.named_parameters() if is_output(name)]
    assert outputs
    for parameter in outputs:
        parameter.zero_()


def silenced(model: PreTrainedModel) -> PreTrainedModel:
    for layer in layers_of(model, DEPTH):
        silence_(layer)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_that_does_nothing_scores_exactly_nothing(tmp_path: Path, family: str) -> None:
    """In every architecture: no perturbation of its update shows, and all other layers do."""
    model = tiny_model(family)
    idle = 2
    silence_(layers_of(model, DEPTH)[idle])
    tokens = some_tokens(1, 8)
    kinds = [("skip", None), ("dropout", None), ("noise", None)]
    variants = all_variants(kinds, parts=PARTS, seeds=1)
    found = ask(opened(model, tmp_path), tokens, tokens.roll(-1, 1), variants)
    js = found.js
    others = [i for i in range(DEPTH) if i != idle]
    assert js[:, idle].nan_to_num().tolist() == [0.0] * len(variants)
    assert float(js[:, others].nan_to_num(1).min()) > 0
    assert not bool(js[[v.part == "layer" for v in variants]].isnan().any())
    flow = {name: getattr(found.swept, name)[:, 0].tolist() for name in ("influence", "angle")}
    assert [flow["influence"][idle], flow["angle"][idle]] == [0, 0]
    assert min(flow["influence"][i] for i in others) > 0
    assert float(found.swept.growth[idle, 0]) == 1


def test_a_silent_mixer_in_a_layer_that_speaks(tmp_path: Path) -> None:
    """The parts of one layer are told apart."""
    model: Any = tiny_model("llama")
    silence_(model.model.layers[1].self_attn)
    variants = [Variant("skip", 1.0, part) for part in PARTS]
    tokens = some_tokens()
    layer, mixer, mlp = ask(opened(model, tmp_path), tokens, tokens, variants).js
    assert mixer[1] == 0
    assert bool((mixer[[0, 2, 3]] > 0).all())
    assert layer[1] == mlp[1] > 0


@pytest.mark.parametrize("model_type", [*FAMILIES, "bloom", "mpt", "opt", "phi", "cohere"])
def test_a_part_that_is_skipped_is_a_part_that_writes_nothing(
    tmp_path: Path, model_type: str
) -> None:
    """As transformers' own model says whose output projections of that part are zero."""
    tokens, model = some_tokens(1, 8), tiny_model(model_type)
    variants = [Variant("skip", 1.0, part) for part in PARTS]
    found = ask(opened(model, tmp_path), tokens, tokens, variants).js
    clean = says(model, tokens)
    for k in (1, 2):
        names = {"mixer": MIXERS, "mlp": MLPS}
        layer = layers_of(model, DEPTH)[k]
        children = dict(layer.named_children())
        parts = {part: [m for n, m in children.items() if n in names[part]] for part in names}
        parts["layer"] = [layer]
        for w, part in enumerate(PARTS):
            without = says(model, tokens, silent=parts[part])
            js = float(jensen_shannon(clean, without).mean()) if parts[part] else math.nan
            assert float(found[w, k]) == pytest.approx(js, abs=1e-6, nan_ok=True), part


@torch.no_grad()
def says(model: PreTrainedModel, tokens: Tensor, silent: Sequence[nn.Module] = ()) -> Tensor:
    """What follows each position, (N, V), with some modules' output projections at zero."""
    kept = {
        parameter: parameter.clone()
        for module in silent
        for name, parameter in module.named_parameters()
        if is_output(name) or is_output(f"mlp.{name}")
    }
    for parameter in kept:
        parameter.zero_()
    logits = model(tokens, use_cache=False).logits.flatten(0, 1)
    for parameter, value in kept.items():
        parameter.copy_(value)
    found: Tensor = logits.double().log_softmax(-1)
    return found


# ---- A single layer that writes the answer, in any architecture -------------------------------

#: One of each kind of mixer and of residual stream: behind norms of its own, in parallel, scaled.
WRITERS = (
    "llama", "qwen3", "gemma2", "olmo2", "gpt_neox", "granite", "mamba", "mamba2", "qwen3_next",
    "olmo_hybrid", "jamba", "falcon_h1", "nemotron_h", "lfm2", "recurrent_gemma",
)  # fmt: skip
ANSWERS = (12, 8)
KINDS = torch.tensor([[5] * 6, [40] * 6])  # rows of one token each, the first and the second kind


@torch.no_grad()
def with_writer(
    model_type: str, layer: int | None, *, loud: float = 2.0, **config: Any
) -> PreTrainedModel:
    """A model of which one layer alone says the answer, at the last position; None: no layer.

    It is asked two kinds of rows, so that all that a layer is given is known: its last output
    projection turns each of both into the row of the head that says its answer.

    Args:
        loud: what the head is multiplied by.
    """
    model = silenced(tiny_model(model_type, **config))
    head: Any = model.get_output_embeddings()
    head.weight.mul_(loud)
    if layer is None:
        return model
    module = layers_of(model, DEPTH)[layer]
    *_, output = (
        child
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear) and is_output(f"{name}.weight")
    )
    given: list[Tensor] = []
    handle = output.register_forward_pre_hook(
        lambda _, args: given.append(args[0].view(*KINDS.shape, -1)[:, -1])
    )
    model(KINDS, use_cache=False)
    handle.remove()
    wanted = 10 * head.weight[list(ANSWERS)]
    output.weight[:] = (torch.linalg.pinv(given[0].double()) @ wanted.double()).T.float()
    return model


def two_kinds() -> tuple[Tensor, Tensor, Tensor]:
    """Three rows of each kind, their answers, and the positions at which they are asked."""
    tokens = KINDS.repeat_interleave(3, 0)
    targets = torch.tensor(ANSWERS).repeat_interleave(3)[:, None].expand_as(tokens)
    last = torch.zeros_like(tokens)
    last[:, -1] = 1
    return tokens, targets, last


@pytest.mark.parametrize("model_type", WRITERS)
def test_a_layer_that_writes_the_answer_is_found_at_every_depth(
    tmp_path: Path, model_type: str
) -> None:
    """The particle, and what skipping does: the model with the layer beside that without."""
    tokens, targets, last = two_kinds()
    ends = slice(tokens.shape[1] - 1, None, tokens.shape[1])  # of the rows, one after another
    untied = {"tie_word_embeddings": False}
    without = says(with_writer(model_type, None, **untied), tokens)[ends]
    assert bool((without.argmax(-1) != targets[:, -1]).all())
    for k in range(DEPTH):
        model = with_writer(model_type, k, **untied)
        found = ask(opened(model, tmp_path / str(k)), tokens, targets, places=last)
        task, clean = found.task, says(model, tokens)[ends]
        assert task.correct == len(tokens)
        assert task.base == pytest.approx(float(clean[:, list(ANSWERS)].exp().mean()), rel=1e-5)
        assert task.lenses["logit"].quartiles == [k + 1] * 3
        assert task.lenses["logit"].jump == task.lenses["logit"].absolute == k + 1
        expected = [0.0] * DEPTH
        expected[k] = float(jensen_shannon(clean, without).mean())
        assert expected[k] > 0.1
        assert found.js[0].tolist() == pytest.approx(expected, abs=1e-6)
        assert [i for i, js in enumerate(found.js[0].tolist()) if js] == [k]
        assert found.curve().vulnerable == k


#: Heads that are tied to the embedding: plain, behind a scaled embedding, scaled, soft-capped.
TIED = (
    "llama", "qwen3", "gemma", "granite", "cohere", "gpt_neox", "mamba", "falcon_h1", "lfm2",
    "recurrent_gemma",
)  # fmt: skip


@pytest.mark.parametrize("model_type", TIED)
def test_a_tied_head_that_says_the_last_token_again_has_no_say(
    tmp_path: Path, model_type: str
) -> None:
    """From what it says of the answer before layer 0, any layer would be half of the way."""
    tokens, targets, last = two_kinds()
    model = with_writer(
        model_type, 2, loud=30.0 if model_type == "cohere" else 4.0, tie_word_embeddings=True
    )
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    task = ask(opened(model, tmp_path), tokens, targets, places=last).task
    lens = task.lenses["logit"]
    assert task.correct == len(tokens)
    assert lens.logp[0] is not None
    assert task.base is not None
    assert lens.logp[0] < math.log(task.base) - 1
    assert lens.quartiles == [3] * 3
    assert lens.jump == lens.absolute == 3


def test_an_answer_that_every_item_has_is_no_knowledge(tmp_path: Path) -> None:
    """Written by a layer and always right: yet nothing rises over what the set alone says."""
    tokens, targets, last = (rows[:3].repeat(2, 1) for rows in two_kinds())
    model = with_writer("llama", 1, tie_word_embeddings=False)
    task = ask(opened(model, tmp_path), tokens, targets, places=last).task
    assert (task.correct, task.particle) == (6, None)
    assert task.why == "undecided: knowing the item raises p(answer) on no item"


# ---- A Llama that multiplies two bits of each token --------------------------------------------

# Dimensions of the stream. The product is no linear function of the bits: no lens can see it
# before a layer has computed it.
ONE, A, B, PRODUCT = range(4)
YES, NO = 7, 8
SIZE, LOUD = 4.0, 2.0  # what is written, and how loud the head reads it


def bits(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Two bits of each token, -1 or 1."""
    return 2.0 * (tokens & 1) - 1, 2.0 * (tokens >> 1 & 1) - 1


def product_of(tokens: Tensor) -> Tensor:
    a, b = bits(tokens)
    return a * b


def answers(tokens: Tensor) -> Tensor:
    return torch.where(product_of(tokens) > 0, YES, NO)


def rms_square(written: float, eps: float) -> float:
    """Of a stream that holds a one, both bits, and so much of their product."""
    return (3 + written**2) / WIDTH + eps


@torch.no_grad()
def bits_model(amounts: Sequence[float]) -> LlamaForCausalLM:
    """A Llama whose MLP of each layer writes so many times the product; 0: a layer does nothing.

    silu(z) - silu(-z) = z: two neurons of a SwiGLU multiply exactly.
    """
    model: Any = tiny_model("llama", num_hidden_layers=len(amounts))
    eps, written = model.config.rms_norm_eps, 0.0
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    a, b = bits(torch.arange(VOCABULARY))
    embedding.zero_()
    embedding[:, ONE], embedding[:, A], embedding[:, B] = 1, a, b
    head.zero_()
    head[YES, PRODUCT], head[NO, PRODUCT] = LOUD, -LOUD
    model.model.norm.weight.fill_(1)
    for layer, amount in zip(model.model.layers, amounts, strict=True):
        silence_(layer)
        if amount:
            layer.post_attention_layernorm.weight.fill_(1)
            mlp = layer.mlp
            for neuron, sign in ((0, 1), (1, -1)):
                mlp.gate_proj.weight[neuron] = sign * one_hot(A)
                mlp.up_proj.weight[neuron] = sign * one_hot(B)
                mlp.down_proj.weight[PRODUCT, neuron] = amount * rms_square(written, eps)
            written += amount
    return model  # type: ignore[no-any-return]


def one_hot(dimension: int) -> Tensor:
    return torch.eye(WIDTH)[dimension]


def said(written: float) -> list[float]:
    """Probabilities of the right answer, of the wrong one, and of each other token, by hand."""
    z = LOUD * written / math.sqrt(rms_square(written, eps=1e-6))
    total = math.exp(z) + math.exp(-z) + VOCABULARY - 2
    return [math.exp(z) / total, math.exp(-z) / total, *[1 / total] * (VOCABULARY - 2)]


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen-Shannon, by hand, in nats."""

    def against_middle(one: Sequence[float], other: Sequence[float]) -> float:
        return sum(x * math.log(2 * x / (x + y)) for x, y in zip(one, other, strict=True))

    return (against_middle(p, q) + against_middle(q, p)) / 2


#: All four pairs of bits equally often in every stretch: no lens learns a chance correlation.
BALANCED = torch.arange(VOCABULARY).view(4, 16)


def ask_bits(parts: Parts, variants: Sequence[Variant] = (Variant("skip", 1.0),)) -> Found:
    return ask(parts, BALANCED, answers(BALANCED), variants, lens=BALANCED)


class Write(nn.Module):
    """Adds a vector to the stream."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(vector, requires_grad=False)

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden + self.vector


class Turn(nn.Module):
    """Rotates the stream."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden @ self.matrix.T


class Erase(nn.Module):
    """Takes the product out of the stream."""

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden * (1 - one_hot(PRODUCT))


class Repair(nn.Module):
    """Writes what is missing of the product."""

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        missing = SIZE * hidden[..., A] * hidden[..., B] - hidden[..., PRODUCT]
        return hidden + missing[..., None] * one_hot(PRODUCT)


def replace_(parts: Parts, layers: dict[int, nn.Module]) -> Parts:
    for index, layer in layers.items():
        parts.model.model.layers[index] = layer
    return parts


def test_the_construction_is_what_it_says(tmp_path: Path) -> None:
    """A Llama of transformers itself, run by transformers, says what the formula says."""
    bits_model([0, SIZE]).save_pretrained(tmp_path)
    p = load(tmp_path)(BALANCED).logits.detach().double().softmax(-1)
    right = p.gather(-1, answers(BALANCED)[..., None])
    assert float((right - said(SIZE)[0]).abs().max()) < 1e-6
    assert said(SIZE)[0] > 0.99


@pytest.mark.parametrize("k", range(DEPTH))
def test_a_layer_that_computes_the_answer(tmp_path: Path, k: int) -> None:
    """Both lenses agree on where; sensitivity is the closed form there and exactly 0 elsewhere."""
    amounts = [SIZE if i == k else 0.0 for i in range(DEPTH)]
    variants = [Variant("skip", 1.0, part) for part in PARTS]
    found = ask_bits(opened(bits_model(amounts), tmp_path), variants)
    task = found.task
    assert (task.correct, task.particle, task.lenses_differ) == (VOCABULARY, k + 1, False)
    for lens in task.lenses.values():
        assert lens.quartiles == [k + 1] * 3
        assert lens.jump == lens.absolute == k + 1
        assert lens.p[: k + 1] == pytest.approx([1 / VOCABULARY] * (k + 1), abs=1e-4)
        assert lens.p[k + 1 :] == pytest.approx([said(SIZE)[0]] * (DEPTH - k), abs=1e-4)
    expected = divergence(said(SIZE), said(0))
    layer, mixer, mlp = found.js.tolist()
    assert layer[k] == mlp[k] == pytest.approx(expected, abs=1e-6)
    assert mixer == [0.0] * DEPTH
    assert [js for i, js in enumerate(layer) if i != k] == [0.0] * (DEPTH - 1)
    assert (found.curve().vulnerable, found.curve().agreement) == (k, 1.0)


def test_an_answer_that_is_erased_does_not_count(tmp_path: Path) -> None:
    """Written, erased, written again: the particle is the last write, the jump the larger one."""
    parts = opened(bits_model([0, 6, -6, 0, 4, 0]), tmp_path)
    # A real layer leaves a rest of 1e-6, which the ridge lens still reads.
    task = ask_bits(replace_(parts, {2: Erase()})).task
    assert (task.correct, task.particle) == (VOCABULARY, 5)
    for lens in task.lenses.values():
        assert lens.quartiles == [5, 5, 5]
        assert (lens.jump, lens.absolute) == (2, 2)
        there = [value is not None and value > 0.9 for value in lens.p]
        assert there == [False, False, True, False, False, True, True]


def test_a_redundant_pair_hides_itself(tmp_path: Path) -> None:
    """Each skip alone is nothing, though both together are all: the values say so."""
    found = ask_bits(opened(bits_model([0, 40, 0, 40]), tmp_path))
    assert float(found.js.max()) < 1e-6
    assert divergence(said(80), said(0)) > 0.5
    assert found.task.particle == 2


def test_an_exact_pair_is_undecided(tmp_path: Path) -> None:
    """Two layers that do the very same: a tie goes to neither, however far ahead of the others."""
    parts = opened(bits_model([0, 0, 0, 0]), tmp_path)
    pair = {1: Write(SIZE * one_hot(PRODUCT)), 3: Write(SIZE * one_hot(PRODUCT))}
    curve = ask_bits(replace_(parts, pair)).curve()
    assert curve.mean[1] == curve.mean[3]
    assert curve.mean[1] is not None
    assert curve.mean[1] > 1e-5
    assert [curve.mean[0], curve.mean[2], curve.vulnerable, curve.agreement] == [0, 0, None, 0]
    assert curve.why == "undecided: only 0% of the resamples name slot 1"


def test_self_repair_hides_the_writer_from_skips_alone(tmp_path: Path) -> None:
    """The particle still finds it."""
    parts = replace_(opened(bits_model([0, SIZE, 0, 0]), tmp_path), {3: Repair()})
    found = ask_bits(parts)
    assert found.task.particle == found.particle("ridge") == 2
    assert float(found.js.max()) < 1e-6
    hidden = opened(bits_model([0, 0, 0, 0]), tmp_path / "repaired")
    assert ask_bits(replace_(hidden, {3: Repair()})).task.particle == 4


def test_a_rotated_middle_needs_the_ridge_lens(tmp_path: Path) -> None:
    """The answer is there all the time, in another basis: the lenses differ, and that is said."""
    matrix, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=Generator().manual_seed(0)))
    parts = opened(bits_model([SIZE, 0, 0, 0]), tmp_path)
    found = ask_bits(replace_(parts, {1: Turn(matrix), 3: Turn(matrix.T)}))
    task = found.task
    assert task.correct == VOCABULARY
    right = said(SIZE)[0]
    assert found.p("logit")[1] == pytest.approx(right, abs=1e-4)
    assert max(found.p("logit")[2:4]) < 0.2
    assert found.p("ridge")[1:] == pytest.approx([right] * 4, abs=1e-4)
    assert (found.particle("logit"), found.particle("ridge")) == (4, 1)
    assert (task.particle, task.lenses_differ) == (None, True)
    assert task.why == (
        "undecided: the lenses differ by more than a quarter of the depth "
        "(logit lens 4, ridge lens 1)"
    )


def test_a_permuted_twin_is_diagnosed_alike(tmp_path: Path) -> None:
    """What is measured does not hang on the basis of the stream."""
    model = tiny_model("llama")
    basis = torch.eye(WIDTH)[torch.randperm(WIDTH, generator=Generator().manual_seed(0))]
    tokens, lens = some_tokens(), some_tokens(8, 12, seed=2)
    one, other = (
        ask(opened(m, tmp_path / name), tokens, tokens.roll(-1, 1), lens=lens)
        for name, m in {"one": model, "twin": in_another_basis(model, basis)}.items()
    )
    assert other.js[0].tolist() == pytest.approx(one.js[0].tolist(), abs=1e-5)
    for lens_name in ("logit", "ridge"):
        mine, theirs = (x.swept.read[1].logp[lens_name] for x in (one, other))
        assert float((mine - theirs).abs().max()) < 1e-2
    for name in ("influence", "angle", "growth"):
        mine, theirs = (getattr(x.swept, name) for x in (one, other))
        assert float((mine - theirs).abs().max()) < 1e-5


# ---- Guards -----------------------------------------------------------------------------------


def alike(folder: Path) -> Parts:
    """Each layer says a word of its own, all equally loud."""
    model: Any = bits_model([0, 0, 0, 0])
    with torch.no_grad():
        for i in range(DEPTH):
            model.lm_head.weight[10 + i] = LOUD * one_hot(4 + i)
    return replace_(opened(model, folder), {i: Write(SIZE * one_hot(4 + i)) for i in range(DEPTH)})


def test_layers_that_are_alike_are_undecided(tmp_path: Path) -> None:
    curve = ask_bits(alike(tmp_path)).curve()
    assert curve.spread == pytest.approx(1, abs=1e-4)
    assert curve.vulnerable is None
    assert curve.why == (
        "undecided: the most sensitive layer is only 1.00 times as sensitive as the least"
    )


def test_layers_that_differ_by_chance_alone_are_undecided(tmp_path: Path) -> None:
    """Each draw names another layer, and resamples over the draws do not agree."""
    variants = all_variants([("dropout", None)], parts=["layer"], seeds=5)
    curve = ask_bits(alike(tmp_path), variants).curve("dropout")
    assert curve.spread is not None
    assert curve.spread > measures.LEAST_SPREAD
    assert curve.agreement is not None
    assert curve.agreement < measures.LEAST_AGREEMENT
    assert curve.vulnerable is None
    assert curve.why.startswith("undecided: only ")


@pytest.mark.parametrize("model_type", ["llama", "mamba2", "qwen3_next"])
def test_zeroing_the_stream_saturates(tmp_path: Path, model_type: str) -> None:
    """Why the naive kind is not the default: whatever layer it hits, the same is left."""
    tokens = some_tokens()
    variants = [Variant("whole", 1.0), Variant("skip", 1.0)]
    parts = opened(tiny_model(model_type), tmp_path)
    found = ask(parts, tokens, tokens.roll(-1, 1), variants)
    whole, skip = found.curve("whole"), found.curve("skip")
    assert whole.spread == pytest.approx(1, abs=1e-6)
    assert whole.vulnerable is None
    assert skip.spread is not None
    assert skip.spread > measures.LEAST_SPREAD


# ---- Closed forms -----------------------------------------------------------------------------


def log(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_closed_forms_of_distributions() -> None:
    assert float(jensen_shannon(log(1, 0), log(0, 1))) == LN2
    assert float(jensen_shannon(log(0.3, 0.7), log(0.3, 0.7))) == 0
    half = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert float(jensen_shannon(log(1, 0), log(0.5, 0.5))) == pytest.approx(half, rel=1e-12)
    p, q = (0.1, 0.2, 0.7), (0.5, 0.25, 0.25)
    assert float(jensen_shannon(log(*p), log(*q))) == pytest.approx(divergence(p, q), rel=1e-12)
    uniform = log(*[1 / VOCABULARY] * VOCABULARY)
    assert float(measures.entropy(uniform)) == pytest.approx(math.log(VOCABULARY), rel=1e-12)
    assert float(measures.entropy(log(1, 0, 0))) == 0
    assert float(measures.entropy(log(0.5, 0.25, 0.25))) == pytest.approx(1.5 * LN2, rel=1e-12)


@pytest.mark.parametrize("degrees", [0, 1, 30, 60, 90, 135, 180])
def test_closed_forms_of_a_rotation(degrees: int) -> None:
    angle = math.radians(degrees)
    given = torch.zeros(1, WIDTH)
    given[0, 0] = 3
    gave = torch.zeros(1, WIDTH, dtype=torch.float64)
    gave[0, :2] = 6 * torch.tensor([math.cos(angle), math.sin(angle)])
    assert float(measures.block_influence(given, gave)) == pytest.approx(1 - math.cos(angle))
    assert float(measures.angular_distance(given, gave)) == pytest.approx(degrees / 180, abs=1e-7)
    assert float(measures.growth(given, gave)) == pytest.approx(2)


def test_a_layer_that_turns_and_stretches(tmp_path: Path) -> None:
    """All tokens by the same angle, as the sweep sees it."""
    angle, length = math.radians(50), 1.5
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = length * torch.block_diag(*[turn] * (WIDTH // 2))
    parts = opened(silenced(tiny_model("llama")), tmp_path)
    tokens = some_tokens()
    swept = ask(replace_(parts, {2: Turn(matrix)}), tokens, tokens).swept
    assert float((swept.influence[2] - (1 - math.cos(angle))).abs().max()) < 1e-6
    assert float((swept.angle[2] - 50 / 180).abs().max()) < 1e-6
    assert float((swept.growth[2] - length).abs().max()) < 1e-6
    for name, nothing in {"influence": 0, "angle": 0, "growth": 1}.items():
        assert bool((getattr(swept, name)[[0, 1, 3]] == nothing).all())


# ---- A task that needs depth ------------------------------------------------------------------

SOLVED = 0.05  # nats


def repeats(generator: Generator, num: int, length: int = 40) -> tuple[Tensor, Tensor]:
    """Rows that repeat themselves after a number of tokens that differs, and that number."""
    periods = torch.randint(8, 16, (num,), generator=generator)
    rows = []
    for period in periods.tolist():
        row = 1 + torch.randperm(31, generator=generator)[:period]
        rows.append(row.repeat(length // period + 1)[:length])
    return torch.stack(rows), periods


def train_induction(depth: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=depth,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    generator = Generator().manual_seed(0)
    for step in range(1000):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 40)
        rows, periods = repeats(generator, 24)
        labels = torch.where(torch.arange(rows.shape[1]) > periods[:, None], rows, -100)
        loss = model(rows, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss < SOLVED:
            break
    assert loss < SOLVED
    return model.eval()


def test_induction_needs_two_layers(tmp_path: Path) -> None:
    """One layer of attention cannot know what came after the token that it looks for."""
    parts = opened(train_induction(3), tmp_path)
    rows, periods = repeats(Generator().manual_seed(99), 16)
    lens, _ = repeats(Generator().manual_seed(7), 48)
    last = torch.arange(rows.shape[1] - 1)
    places = (last > periods[:, None]).long()
    found = ask(parts, rows[:, :-1], rows[:, 1:], places=places, lens=lens)
    task = found.task
    assert task.accuracy is not None
    assert task.accuracy > 0.95
    assert task.lenses["logit"].quartiles is not None
    assert task.lenses["logit"].quartiles[0] >= 2
    assert task.particle is not None
    assert task.particle >= 2
    assert found.p("logit")[1] < 0.3
    assert found.p("ridge")[1] < 0.3
