"""The sweep is the naive forward passes, bit for bit, in half the work and from one layer's memory.

Whoever reads a curve of ours must be able to take it for what transformers' own model does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from benchmarks.naive_forwards import layers_of, naive_js, naive_logits, perturbing
from hybridize.diagnostics.measure import measures
from hybridize.diagnostics.measure.sheets import Points, Sheet
from hybridize.diagnostics.measure.sweep import Swept, layer_tokens, sweep
from hybridize.diagnostics.measure.variants import PARTS, Variant, all_variants, has_part, perturbed
from hybridize.errors import CheckFailed
from hybridize.machine.precision import AUTO
from hybridize.model.checkpoint import open_checkpoint
from hybridize.model.donors import load_donor
from hybridize.plugins import load_plugin, plugin_names
from hybridize.torch_model.loading import Parts, Weights, built_parts
from hybridize.torch_model.stream import Stream
from tests.support.stacks import build_in, load, save_donor
from tests.support.tiny import tiny_model

TYPES = ("llama", "gemma2", "mamba2", "qwen3_next", "jamba")
KINDS = plugin_names("perturbations")
NAIVE = [(kind, None) for kind in ("skip", "dropout", "noise")]
PLENTY = 1 << 40  # bytes
DEPTH, ROWS, TOKENS = 4, 2, 12


def rows(seed: int, num_rows: int = ROWS, num_tokens: int = TOKENS) -> Tensor:
    return torch.randint(3, 60, (num_rows, num_tokens), generator=Generator().manual_seed(seed))


def sheet(
    tokens: Tensor, points: int | None = 0, *, first: int = 0, lengths: Sequence[int] = ()
) -> Sheet:
    """All real positions are scored, so that the head multiplies the same matrices as a model's."""
    sizes = torch.tensor(lengths or [tokens.shape[1]] * len(tokens))
    real = torch.arange(tokens.shape[1]) < sizes[:, None]
    at, columns = real.nonzero().unbind(1)
    members = torch.arange(first, first + len(at))
    asked = points is not None
    return Sheet(tokens, sizes, at, columns, points, members, perturbed=asked, is_text=asked)


def text(sheets: Sequence[Sheet]) -> Points:
    """What follows each position of some sheets; each row is a unit."""
    targets = torch.cat([s.tokens.roll(-1, 1)[s.rows, s.columns] for s in sheets])
    units = torch.cat([s.rows + ROWS * i for i, s in enumerate(sheets)])
    return Points("text", "text", units, targets)


def lens(num: int = 4) -> list[Sheet]:
    return [sheet(rows(100 + i), None) for i in range(num)]


def swept(parts: Parts, sheets: Sequence[Sheet], variants: Sequence[Variant], **said: Any) -> Swept:
    points = said.pop("points", None) or text([s for s in sheets if s.points is not None])
    options: dict[str, Any] = {"memory": PLENTY, "progress": lambda done, total: None}
    return sweep(parts, sheets, [points], variants, **options | said)


def js_of(found: Swept) -> Tensor:
    """(W, L, N)."""
    js = found.read[0].js
    assert js is not None
    return js


def parts_of(folder: Path, *, streamed: bool = False, compute: str = AUTO) -> Parts:
    donor = load_donor(folder, name="only", source="only", place="only")
    return aligned(Weights({"only": donor}, compute=compute).parts("only", streamed=streamed))


def aligned(parts: Parts) -> Parts:
    """Some processors' kernels round by where a tensor lies, and a mapped file lies anywhere."""
    for parameter in parts.model.parameters():
        if not is_stand_in(parameter):
            parameter.data = parameter.data.clone()
    return parts


def is_stand_in(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize


def save_hybrid(folder: Path) -> Path:
    """Llama below, Mamba-2 in a wider stream above: two bridges, the second before the head."""
    save_donor(folder / "a", "llama")
    save_donor(folder / "b", "mamba2", seed=1, hidden_size=48, head_dim=12)
    recipe = {
        "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
        "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
        "head": "a",
        "bridges": {"init": "random"},
    }
    return build_in(folder, recipe).folder


def hybrid_parts(folder: Path, *, streamed: bool = False) -> Parts:
    return aligned(built_parts(open_checkpoint(folder), "cpu", streamed=streamed))


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Bit for bit; what is not measured is not measured in both."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one.nan_to_num(), other.nan_to_num()
    )


def far(one: Tensor, other: Tensor) -> float:
    """Largest difference; infinite where only one of both is a number."""
    if not torch.equal(one.isnan(), other.isnan()):
        return float("inf")
    return float((one - other).abs().nan_to_num().max())


def all_same(one: Swept, other: Swept) -> dict[str, bool]:
    """Everything that two sweeps have found, by name."""
    a, b = one.read[0], other.read[0]
    found = {name: same(getattr(a, name), getattr(b, name)) for name in ("js", "loss", "base")}
    found |= {f"logp {name}": same(a.logp[name], b.logp[name]) for name in a.logp}
    found |= {f"entropy {name}": same(a.entropy[name], b.entropy[name]) for name in a.entropy}
    for name in ("influence", "angle", "growth", "layer_growth", "lens_r2"):
        found[name] = same(getattr(one, name), getattr(other, name))
    return {**found, "nats": one.nats == other.nats, "correct": same(a.correct, b.correct)}


def differing(one: Swept, other: Swept) -> list[str]:
    return [name for name, equal in all_same(one, other).items() if not equal]


@contextmanager
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Log-probabilities that the sweep compares, clean and perturbed, in its order."""
    found: list[tuple[Tensor, Tensor]] = []
    real = measures.jensen_shannon

    def noted(one: Tensor, other: Tensor) -> Tensor:
        found.append((one, other))
        return real(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(measures, "jensen_shannon", noted)
        yield found


def check_against_naive(
    parts: Parts, native: nn.Module, variants: Sequence[Variant], monkeypatch: pytest.MonkeyPatch
) -> Swept:
    one = sheet(rows(0))
    with outcomes(monkeypatch) as seen:
        found = swept(parts, [one], variants)
    places = one.rows, one.columns
    keys = []
    for layer, module in enumerate(layers_of(native, DEPTH)):
        for w, variant in enumerate(variants):
            with perturbing(module, variant, layer) as there:
                assert there == has_part(parts.model.model.layers[layer], variant.part)
                if there:
                    logits = naive_logits(native, one.tokens, places)
                    keys.append(((w, layer), measures.log_softmax(logits)))
    clean = measures.log_softmax(naive_logits(native, one.tokens, places))
    assert len(seen) == len(keys)
    for (mine, perturbed_), (key, theirs) in zip(seen, reversed(keys), strict=True):
        assert torch.equal(mine, clean)
        assert torch.equal(perturbed_, theirs), f"variant and layer {key}"
    js = js_of(found)
    assert far(js, naive_js(native, one.tokens, places, variants, depth=DEPTH)) < 1e-6
    assert float(js.nan_to_num().min()) >= 0
    return found


class TestNaiveForwards:
    """The sweep is what L + 1 forward passes of transformers' own model give."""

    @pytest.mark.parametrize("model_type", TYPES)
    def test_a_donor_alone(
        self, tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_donor(tmp_path, model_type)
        variants = all_variants(NAIVE, parts=PARTS, seeds=2)
        assert len(variants) == 3 * (1 + 2 + 2)
        parts, native = parts_of(tmp_path), load(tmp_path)
        found = check_against_naive(parts, native, variants, monkeypatch)
        missing = js_of(found).isnan().all(2).all(1).tolist()
        without = ["mlp"] if model_type == "mamba2" else []
        assert missing == [variant.part in without for variant in variants]

    def test_a_built_hybrid_of_two_widths(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With bridges between; its lower half alone has MLPs."""
        folder = save_hybrid(tmp_path)
        variants = all_variants(NAIVE, parts=PARTS, seeds=1)
        found = check_against_naive(hybrid_parts(folder), load(folder), variants, monkeypatch)
        mlps = [w for w, variant in enumerate(variants) if variant.part == "mlp"]
        assert js_of(found)[mlps].isnan().all(2).all(0).tolist() == [False, False, True, True]

    def test_naive_perturbations_of_the_stream(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_donor(tmp_path, "llama")
        variants = all_variants([("whole", None), ("dimensions", None)], parts=PARTS, seeds=2)
        assert [v.part for v in variants] == ["layer"] * 3
        check_against_naive(parts_of(tmp_path), load(tmp_path), variants, monkeypatch)

    @pytest.mark.parametrize("model_type", ["llama", "jamba"])
    def test_sixteen_bits(
        self, tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As models are published."""
        tiny_model(model_type).bfloat16().save_pretrained(tmp_path)
        variants = all_variants(NAIVE, parts=PARTS, seeds=1)
        parts = parts_of(
            tmp_path, compute="bfloat16"
        )  # whether this processor is fast in it or not
        check_against_naive(parts, load(tmp_path), variants, monkeypatch)

    @pytest.mark.parametrize("model_type", TYPES)
    @torch.no_grad()
    def test_what_is_read_of_the_clean_run(self, tmp_path: Path, model_type: str) -> None:
        """Losses, right answers, and what the logit lens sees, by transformers' own modules."""
        save_donor(tmp_path, model_type)
        one, native = sheet(rows(0)), load(tmp_path)
        found, points = swept(parts_of(tmp_path), [one], []), text([one])
        states: list[Tensor] = []
        for layer in layers_of(native, DEPTH):
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: states.append([*args, *kwargs.values()][0]),
                with_kwargs=True,
            )
        seen: list[Tensor] = []  # what the head makes of each depth
        logits = native(one.tokens, use_cache=False).logits
        for state in states[:DEPTH]:
            seen.append(_instead_of_the_last(native, one.tokens, state))
        read = found.read[0]
        assert read.js is None
        for depth, some in enumerate([*seen, logits]):
            logp = some[one.rows, one.columns].double().log_softmax(-1)
            expected = logp.gather(-1, points.targets[:, None])[:, 0]
            assert far(read.logp["logit"][depth], expected) < 1e-6
            assert far(read.entropy["logit"][depth], measures.entropy(logp)) < 1e-6
        mean = logits[one.rows, one.columns].double().softmax(-1).mean(0)
        assert far(read.base, mean.log()[points.targets]) < 1e-6
        best = logits[one.rows, one.columns].argmax(-1)
        assert torch.equal(read.correct, best == points.targets)
        losses = nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), one.tokens[:, 1:], reduction="none"
        )
        expected_nats = losses.double().sum(1).tolist()
        assert [total for total, _ in found.nats["text"]] == pytest.approx(expected_nats)
        assert [count for _, count in found.nats["text"]] == [TOKENS - 1] * ROWS

    def test_half_the_work(self, tmp_path: Path) -> None:
        """Layer-tokens are what they are said to be, and those of 1 + L / 2 forward passes."""
        save_donor(tmp_path, "llama")
        one, told = sheet(rows(0)), []
        variants = [Variant("skip", 1.0)]
        found = swept(
            parts_of(tmp_path), [one], variants, progress=lambda *counts: told.append(counts)
        )
        passes = 1 + (DEPTH - 1) / 2
        assert found.layer_tokens == layer_tokens(DEPTH, [one], variants)
        assert found.layer_tokens == DEPTH * passes * one.tokens.numel()
        assert told[-1][0] == told[-1][1]
        assert [done for done, _ in told] == sorted(done for done, _ in told)

    def test_progress_counts_the_head_and_what_is_compared(self, tmp_path: Path) -> None:
        """With a vocabulary as wide as real ones they take longer than small layers."""
        vocabulary = 5000
        save_donor(tmp_path, "llama", vocab_size=vocabulary)
        parts, told = parts_of(tmp_path), []
        sheets, variants = [*lens(), sheet(rows(0))], [Variant("skip", 1.0)]
        found = swept(parts, sheets, variants, progress=lambda *counts: told.append(counts))
        parameters = sum(p.numel() for p in parts.model.model.layers[0].parameters())
        (done, total), num_points = told[-1], len(sheets[-1].members)
        assert done == total
        in_layers = parameters * found.layer_tokens
        # The head reads every depth through two lenses, the end and the loss once, each variant.
        heads = 2 * DEPTH + 1 + 1 + DEPTH
        assert total - in_layers > vocabulary * 32 * num_points * heads
        assert max(b - a for (a, _), (b, _) in pairwise([(0, 0), *told])) < 0.2 * total


def _instead_of_the_last(native: nn.Module, tokens: Tensor, state: Tensor) -> Tensor:
    """Logits of a model whose last layer gives a state of another depth."""

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handle = layers_of(native, DEPTH)[-1].register_forward_hook(after)
    logits: Tensor = native(input_ids=tokens, use_cache=False).logits
    handle.remove()
    return logits


#: Tied embeddings, and experts that lie one by one on disk, are read in other pieces.
ON_DISK = {
    "llama": {},
    "jamba": {},
    "qwen3": {"tie_word_embeddings": True},
    "mixtral": {},
}


class TestStreaming:
    """A model that is larger than memory gives the same numbers."""

    @pytest.mark.parametrize("model_type", ON_DISK)
    def test_streamed_is_in_memory_bit_for_bit(self, tmp_path: Path, model_type: str) -> None:
        save_donor(tmp_path, model_type, **ON_DISK[model_type])
        self._check(lambda streamed: parts_of(tmp_path, streamed=streamed))

    def test_streamed_hybrid_is_in_memory_bit_for_bit(self, tmp_path: Path) -> None:
        folder = save_hybrid(tmp_path)
        self._check(lambda streamed: hybrid_parts(folder, streamed=streamed))

    def _check(self, open_parts: Callable[[bool], Parts]) -> None:
        kinds = [(kind, None) for kind in KINDS]
        variants = all_variants(kinds, parts=PARTS, seeds=1)
        sheets = [*lens(), sheet(rows(0)), sheet(rows(1), first=ROWS * TOKENS)]
        here = swept(open_parts(False), sheets, variants)
        parts, most = open_parts(True), 0

        def watch(*_: int) -> None:
            nonlocal most
            most = max(most, len(held(parts)))
            if held(parts):
                assert not in_memory(parts, "model.embed_tokens.", "lm_head.")

        there = swept(parts, sheets, variants, progress=watch)
        assert differing(here, there) == []
        assert most == 1, "layers in memory at a time"
        assert held(parts) == []
        assert not in_memory(parts, "model.embed_tokens.", "lm_head.")

    def test_a_layer_goes_when_its_visit_fails(self, tmp_path: Path) -> None:
        model = tiny_model("llama")
        model.get_parameter("model.layers.2.mlp.up_proj.weight").data[0, 0] = torch.inf
        model.save_pretrained(tmp_path)
        parts = parts_of(tmp_path, streamed=True)
        with pytest.raises(CheckFailed) as caught:
            swept(parts, [sheet(rows(0))], [Variant("skip", 1.0)])
        assert str(caught.value) == (
            "layer 2 gives states that are not finite: its mlp.up_proj.weight holds numbers that "
            "are not finite\n"
            "  fix: repair or replace the checkpoint; in 16 bits, try a wider dtype"
        )
        assert held(parts) == []


def held(parts: Parts) -> list[int]:
    """Layers of which a parameter is more than a stand-in."""
    layers = enumerate(parts.model.model.layers)
    return [i for i, m in layers if any(not is_stand_in(p) for p in m.parameters())]


def in_memory(parts: Parts, *prefixes: str) -> list[str]:
    named = parts.model.named_parameters()
    return [n for n, p in named if n.startswith(prefixes) and not is_stand_in(p)]


class TestGroups:
    """Text that does not fit at once goes through the model in groups."""

    def test_little_memory_gives_the_same_numbers(self, tmp_path: Path) -> None:
        """The linear map that stands for a layer, too, is that of all lens text in every group."""
        save_donor(tmp_path, "llama")
        parts = parts_of(tmp_path)
        kinds = [("linear", None), ("dropout", None), ("weights", None)]
        variants = all_variants(kinds, parts=PARTS, seeds=2)
        each = ROWS * TOKENS
        sheets = [*lens(), *(sheet(rows(i), first=i * each) for i in range(3))]
        whole = swept(parts, sheets, variants)
        one_by_one = swept(parts, sheets, variants, memory=1)
        in_twos = swept(parts, sheets, variants, memory=2 * each * 32 * 4 * (1 + 13 * DEPTH))
        assert len(variants) == 13
        assert differing(whole, one_by_one) == []
        assert differing(whole, in_twos) == []
        again = each * DEPTH * len(lens())  # lens text, for the maps
        assert one_by_one.layer_tokens == whole.layer_tokens + 2 * again
        assert in_twos.layer_tokens == whole.layer_tokens + again

    def test_groups_count_their_work_beforehand(self, tmp_path: Path) -> None:
        save_donor(tmp_path, "llama")
        told: list[tuple[int, int]] = []
        sheets = [*lens(), *(sheet(rows(i), first=i * ROWS * TOKENS) for i in range(3))]
        swept(
            parts_of(tmp_path), sheets, all_variants([("linear", None), ("skip", None)],
            parts=["layer"], seeds=1), memory=1, progress=lambda *counts: told.append(counts),
        )  # fmt: skip
        assert told[-1][0] == told[-1][1] == told[0][1]

    def test_chunks_of_a_wide_vocabulary(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_donor(tmp_path, "llama")
        parts, sheets = parts_of(tmp_path), [*lens(), sheet(rows(0))]
        variants = all_variants(NAIVE, parts=PARTS, seeds=1)
        whole = swept(parts, sheets, variants)
        monkeypatch.setattr("hybridize.diagnostics.measure.sweep.LOGITS", 5 * 64)
        few = swept(parts, sheets, variants)
        assert far(js_of(whole), js_of(few)) < 1e-6
        assert far(whole.read[0].logp["ridge"], few.read[0].logp["ridge"]) < 1e-4


class TestPadding:
    @pytest.mark.parametrize("model_type", [*TYPES, "mixtral", "falcon_h1"])
    def test_rows_of_one_sheet_do_not_see_their_padding(
        self, tmp_path: Path, model_type: str
    ) -> None:
        """Items of unlike length run together, padded on the right without a mask."""
        save_donor(tmp_path, model_type)
        parts = parts_of(tmp_path)
        # Nothing drawn anew for each token: of another shape, other numbers would be drawn.
        kinds = [("skip", None), ("dropout", None)]
        variants = all_variants(kinds, parts=PARTS, seeds=1)
        lengths, tokens = (TOKENS, 7), rows(0)
        padded = tokens.clone()
        padded[1, 7:] = tokens[1, 6]  # as sheets pad
        one = sheet(padded, lengths=lengths)
        points = text([one])
        together = swept(parts, [one], variants, points=points)
        rows_alone = [sheet(tokens[:1]), sheet(tokens[1:, :7], first=TOKENS)]
        alone = swept(parts, rows_alone, variants, points=points)
        mine, theirs = together.read[0], alone.read[0]
        assert far(js_of(together), js_of(alone)) < 1e-5
        assert far(mine.logp["logit"], theirs.logp["logit"]) < 1e-3
        assert far(together.influence, alone.influence) < 1e-5
        sums, counts = zip(*together.nats["text"], strict=True)
        sums_alone, counts_alone = zip(*alone.nats["text"], strict=True)
        assert counts == counts_alone == (TOKENS - 1, 7 - 1), "all real tokens but the first"
        assert sums == pytest.approx(sums_alone, rel=1e-5)


class TestPerturbations:
    """Every file of the folder keeps the contract that `variants` states."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_contract(self, kind: str) -> None:
        plugin = load_plugin("perturbations", kind)
        assert plugin.ACTS_ON in ("update", "input", "output", "weights", "fit")
        assert isinstance(plugin.RANDOM, bool)
        assert 0 < plugin.STRENGTH <= 1
        assert plugin.TITLE.strip(" .") == plugin.TITLE
        assert len(plugin.TITLE) < 100

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("kind", KINDS)
    def test_shape_dtype_and_no_strength(self, kind: str, dtype: torch.dtype) -> None:
        """A strength of zero leaves a value as it is; the value itself is never written to."""
        value = torch.randn(2, 5, 8, generator=Generator().manual_seed(0)).to(dtype)
        kept = value.clone()
        changed = Variant(kind, load_plugin("perturbations", kind).STRENGTH).change(1)(value)
        assert (changed.dtype, changed.shape) == (dtype, value.shape)
        assert torch.equal(value, kept)
        assert not torch.equal(changed, value)
        assert torch.equal(Variant(kind, 0.0).change(1)(value), value)

    @pytest.mark.parametrize("kind", KINDS)
    def test_chance_is_that_of_seed_layer_and_part(self, kind: str) -> None:
        """The same on every machine and in every run; another for each seed, layer and part."""
        plugin = load_plugin("perturbations", kind)
        value = torch.randn(2, 50, 64, generator=Generator().manual_seed(0))

        def changed(*, layer: int = 1, part: str = "layer", seed: int = 0) -> Tensor:
            torch.manual_seed(layer + seed)  # the global generator has no say
            return Variant(kind, plugin.STRENGTH, part, seed).change(layer)(value)

        first = changed()
        assert torch.equal(first, changed())
        others = [changed(layer=2), changed(part="mlp"), changed(seed=1)]
        assert [torch.equal(first, other) for other in others] == [not plugin.RANDOM] * 3

    @pytest.mark.parametrize("kind", KINDS)
    def test_parts_and_seeds(self, kind: str) -> None:
        """What acts on the whole stream has no part; what does not draw needs no second seed."""
        plugin = load_plugin("perturbations", kind)
        found = all_variants([(kind, None), (kind, 0.25)], parts=PARTS, seeds=3)
        whole_only = plugin.ACTS_ON in ("output", "fit")
        assert whole_only == (kind in ("whole", "dimensions", "linear"))
        assert {v.part for v in found} == ({"layer"} if whole_only else set(PARTS))
        assert len(found) == 2 * (1 if whole_only else 3) * (3 if plugin.RANDOM else 1)
        assert {v.strength for v in found} == {plugin.STRENGTH, 0.25}

    def test_amounts(self) -> None:
        """As much is done as each file says."""
        value = torch.randn(4, 400, 500, generator=Generator().manual_seed(0))

        def done(kind: str, strength: float) -> Tensor:
            return Variant(kind, strength).change(0)(value)

        def zeros(tensor: Tensor) -> float:
            return float((tensor == 0).double().mean())

        for kind in ("dropout", "dimensions"):
            lost = (done(kind, 0.5) == 0).flatten(0, 1)
            assert bool((lost == lost[0]).all()), "the same dimensions for every token"
            assert zeros(done(kind, 0.5)) == pytest.approx(0.5, abs=0.1)
        lost = done("tokens", 0.3) == 0
        assert bool((lost == lost[..., :1]).all()), "whole tokens"
        assert zeros(done("tokens", 0.3)) == pytest.approx(0.3, abs=0.05)
        for kind in ("skip", "whole", "linear"):
            assert torch.equal(done(kind, 1.0), torch.zeros_like(value))
            assert torch.equal(done(kind, 0.25), value * 0.75)
        noise = done("noise", 2.0) - value
        ratio = noise.square().mean(-1).sqrt() / value.square().mean(-1).sqrt()
        assert float(ratio.mean()) == pytest.approx(2, rel=0.02)
        assert float((done("weights", 0.3) - value).std() / value.std()) == pytest.approx(
            0.3, rel=0.02
        )


class TestWeights:
    """The `weights` perturbation touches nothing but what it hands to one run."""

    @pytest.mark.parametrize("part", PARTS)
    def test_weights_come_back_even_if_the_layer_raises(self, tmp_path: Path, part: str) -> None:
        save_donor(tmp_path, "llama")
        parts = parts_of(tmp_path)
        before = {n: (p.data_ptr(), p.clone()) for n, p in parts.model.named_parameters()}
        variant = Variant("weights", 0.3, part)
        with parts.embedding():
            stream = Stream(parts.model, rows(0), None)
        clean = stream.run_slot(1, stream.first)
        assert not torch.equal(perturbed(variant, stream, 1, stream.first, clean, None), clean)

        def fails(*_: Any) -> None:
            raise RuntimeError("out of memory")

        handle = parts.model.model.layers[1].mlp.down_proj.register_forward_hook(fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            perturbed(variant, stream, 1, stream.first, clean, None)
        handle.remove()
        after = dict(parts.model.named_parameters())
        assert [n for n, (place, value) in before.items() if after[n].data_ptr() != place
                or not torch.equal(after[n], value)] == []  # fmt: skip
        assert torch.equal(stream.run_slot(1, stream.first), clean)

    @pytest.mark.parametrize("kind", KINDS)
    def test_hooks_go_even_if_the_layer_raises(self, tmp_path: Path, kind: str) -> None:
        save_donor(tmp_path, "llama")
        parts = parts_of(tmp_path)
        stream = Stream(parts.model, rows(0), None)
        clean = stream.run_slot(1, stream.first)
        layer = parts.model.model.layers[1]
        layer.forward = lambda *_, **__: 1 / 0
        for variant in all_variants([(kind, None)], parts=["mixer", "mlp"], seeds=1):
            with pytest.raises(ZeroDivisionError):
                perturbed(variant, stream, 1, stream.first, clean, None)
        del layer.forward
        assert torch.equal(stream.run_slot(1, stream.first), clean)

    def test_on_a_mapped_file_nothing_is_written(self, tmp_path: Path) -> None:
        save_donor(tmp_path, "llama")
        (file,) = tmp_path.glob("*.safetensors")
        content = file.read_bytes()
        donor = load_donor(tmp_path, name="only", source="only", place="only")
        parts = Weights({"only": donor}).parts("only", streamed=False)
        swept(parts, [sheet(rows(0))], all_variants([("weights", None)], parts=PARTS, seeds=2))
        assert file.read_bytes() == content
