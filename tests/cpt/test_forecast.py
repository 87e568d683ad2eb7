"""What a run costs: counted from shapes, checked against the formulas and sums done by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from hybridize.cpt.plan.costs import active_experts, parts
from hybridize.cpt.plan.forecast import Forecast, forecast
from hybridize.cpt.plan.model_tensors import ModelTensors, read_model_tensors
from hybridize.cpt.plan.policy import Entry, resolve
from hybridize.errors import HybridizeError
from tests.support.stacks import build_in, load, save_donor

#: Small embeddings and head beside the slots, and a short sequence: the papers' formulas hold.
TALL: dict[str, Any] = {
    "num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 192, "vocab_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forecast")
    save_donor(path / "tall", "llama", **TALL)
    for family in ("llama", "mixtral", "mamba2", "gpt2", "deepseek_v3"):
        save_donor(path / family, family)
    save_donor(path / "wide", "qwen3", seed=2, hidden_size=48)
    recipe: dict[str, Any] = {
        "donors": {name: {"model": name} for name in ("tall",)},
        "slots": [{"from": "tall", "layers": "0-7"}],
        "bridges": {"where": [4], "init": "identity", "kind": "lowrank", "rank": 1},
    }
    build_in(path, recipe, "bridged")
    hybrid: dict[str, Any] = {
        "donors": {name: {"model": name} for name in ("mixtral", "wide", "mamba2")},
        "slots": [
            {"from": "mamba2", "layer": 0},
            {"from": "mixtral", "layer": 1, "mixer": {"from": "wide", "layer": 2}},
            {"from": "wide", "layer": 2},
        ],
        "bridges": {"where": "width-changes", "init": "random"},
    }
    build_in(path, hybrid, "hybrid")
    return path


def run_of(stack: ModelTensors, entries: Sequence[Entry], **options: Any) -> Forecast:
    settings: dict[str, Any] = {"tokens": 10_000, "batch_tokens": 64, "length": 16, **options}
    return forecast(stack, resolve(stack, entries), **settings)


# ---- FLOPs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tall", "llama", "mixtral", "mamba2", "gpt2", "hybrid"])
@pytest.mark.parametrize("options", [{}, {"checkpointing": True}], ids=["", "checkpointing"])
def test_full_training_is_the_unit(folder: Path, name: str, options: dict[str, Any]) -> None:
    run = run_of(read_model_tensors(folder / name), ["full"], **options)
    assert run.ratio == 1
    assert run.flops == run.full_flops
    assert run.memory == run.full_memory


@pytest.mark.parametrize("number", [1, 2, 4, 6])
def test_the_papers_formulas_hold_where_slots_are_all_there_is(folder: Path, number: int) -> None:
    stack, s = read_model_tensors(folder / "tall"), number / 8
    assert run_of(stack, [{"shallow": number}], length=2).ratio == pytest.approx(
        (2 + s) / 3, rel=0.02
    )
    assert run_of(stack, [{"deep": number}], length=2).ratio == pytest.approx(
        (1 + 2 * s) / 3, rel=0.02
    )
    full = ["full"]
    assert run_of(stack, full, length=2, tokens=1000).flops.total == pytest.approx(
        6 * stack.num_parameters, rel=0.02
    )


def test_a_bridge_half_way_up_saves_the_backward_pass_below(folder: Path) -> None:
    stack = read_model_tensors(folder / "bridged")
    assert run_of(stack, ["bridges"], length=2).ratio == pytest.approx((2 - 0.5) / 3, rel=0.02)
    cached = run_of(stack, ["bridges"], length=2, cached_prefix=True)
    assert cached.ratio == pytest.approx(2 * (1 - 0.5) / 3, rel=0.02)


def test_checkpointing_repeats_only_what_the_backward_pass_goes_through(folder: Path) -> None:
    run = run_of(read_model_tensors(folder / "tall"), [{"deep": 2}], length=2, checkpointing=True)
    assert run.flops.again == pytest.approx(run.flops.forward / 4, rel=0.02)
    assert run.full_flops.again == pytest.approx(run.full_flops.forward, rel=0.02)


def test_a_head_alone_needs_no_backward_pass_through_anything(folder: Path) -> None:
    run = run_of(read_model_tensors(folder / "llama"), ["head"])
    assert run.flops.activations == 0
    assert run.flops.weights == 2 * 64 * 32
    assert run.memory.activations == 0


def test_a_tied_matrix_costs_as_a_head(folder: Path) -> None:
    run = run_of(read_model_tensors(folder / "gpt2"), ["embeddings"])
    assert run.flops.weights == 2 * 64 * 32
    assert run.flops.activations == run.full_flops.activations


@pytest.mark.parametrize("name", ["llama", "gpt2", "tall", "bridged", "mixtral"])
@pytest.mark.parametrize("entries", [["full"], [{"shallow": 1}], [{"deep": 1}]], ids=str)
def test_torch_counts_the_same_matrices(folder: Path, name: str, entries: list[Entry]) -> None:
    """An independent count of one step. Attention's scores are left out of both: torch counts the
    square, and the forecast what a causal mask leaves of it; and so is, in the lowest slot, the
    way back to its input, which nobody asks for.
    """
    stack, model = read_model_tensors(folder / name), load(folder / name).train()
    if name == "mixtral":
        model.set_experts_implementation("eager")  # torch counts no grouped product
    policy = resolve(stack, entries)
    slots = {tensor.slot for tensor in policy.trained}
    for parameter_name, parameter in model.named_parameters():
        number = re.search(r"\.(\d+)\.", parameter_name)  # Mixtral's names differ in memory
        whole = name == "mixtral" and number is not None and int(number[1]) in slots
        parameter.requires_grad_(whole or parameter_name in policy.roles)
    ids = torch.ones(1, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids, use_cache=False).loss.backward()
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    matrices = sum(n for op, n in counts.items() if "bmm" not in op and "attention" not in op)
    run = run_of(stack, entries)
    found = parts(stack, 16)
    learns = policy.roles
    lowest = next(p for p in found if any(t.name in learns for t in p.tensors))
    weights = run.flops.total - 2 * sum(part.scores for part in found)
    weights -= 4 * sum(p.scores for p in found if p.position >= lowest.position)
    slack = 2 * lowest.macs if lowest.is_slot else 0.0
    assert (weights - slack) * 16 <= matrices <= weights * 16


def test_only_active_experts_are_counted(folder: Path) -> None:
    """Two of four in Mixtral, on disk one by one; in the hybrid they are fused."""
    stack = read_model_tensors(folder / "mixtral")
    slot = next(part for part in parts(stack, 16) if part.is_slot)
    assert active_experts(stack, slot.tensors) == 0.5
    attention, router, experts = 32 * (32 + 16 + 16 + 32), 4 * 32, 4 * 3 * 48 * 32
    assert slot.macs == attention + router + experts / 2
    hybrid = read_model_tensors(folder / "hybrid")
    host = next(part for part in parts(hybrid, 16) if part.position == (1, 1))
    assert active_experts(hybrid, host.tensors) == 0.5
    assert {m.share for m in host.matrices if ".experts." in m.tensor.name} == {0.5}
    assert {m.share for m in host.matrices if ".experts." not in m.tensor.name} == {1.0}


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("llama", [32 + 32] * 4),
        ("mamba2", [0] * 4),
        ("hybrid", [0, 32 + 32, 32 + 32]),
        ("deepseek_v3", [4 * (8 + 8 + 8)] * 4),
    ],
)
def test_scores_are_those_of_attention_layers(folder: Path, name: str, scores: list[int]) -> None:
    """With one token there is one key to see; with 15, 8 of them on average."""
    stack = read_model_tensors(folder / name)
    assert [part.scores for part in parts(stack, 1) if part.is_slot] == scores
    assert sum(part.scores for part in parts(stack, 15)) <= 8 * sum(scores)


def test_a_window_bounds_what_attention_sees(folder: Path) -> None:
    """Mixtral's here is of 4 tokens: of 16, they see 1, 2, 3 and then always 4."""
    slot = next(part for part in parts(read_model_tensors(folder / "mixtral"), 16) if part.is_slot)
    assert slot.scores == 64 * (1 + 2 + 3 + 13 * 4) / 16


# ---- memory ------------------------------------------------------------------------------------


def test_memory_adds_up_by_hand(folder: Path) -> None:
    """Llama of width 32 in fp32, one of four slots; 64 tokens at a time."""
    stack = read_model_tensors(folder / "llama")
    slot = 32 * (32 + 16 + 16 + 32) + 3 * 48 * 32 + 2 * 32
    total = 4 * slot + 2 * 64 * 32 + 32
    memory = run_of(stack, [{"shallow": 1}]).memory
    assert memory.parameters == 4 * total
    assert memory.gradients == 4 * slot
    assert memory.moments == 8 * slot
    outputs = 32 + 16 + 16 + 32 + 48 + 48 + 32
    inputs = 32 * 4 + 32 + 32 + 48
    assert memory.activations == 64 * 4 * (4 * 1.5 * outputs + inputs)
    assert memory.logits == 64 * 64 * 3 * 4
    assert memory.total == memory.state + memory.activations + memory.logits
    checkpointed = run_of(stack, [{"shallow": 1}], checkpointing=True).memory
    assert checkpointed.activations == 64 * 4 * (4 * 32 + 1.5 * outputs + inputs)


def test_the_state_of_a_16_bit_model_is_that_of_the_formula(folder: Path, tmp_path: Path) -> None:
    """2 bytes for what is frozen, 16 for what learns: fp32 masters, gradients and two moments."""
    recipe = {
        "donors": {"a": {"model": str(folder / "llama")}},
        "slots": [{"from": "a", "layers": "0-3"}],
        "dtype": "bfloat16",
    }
    stack = read_model_tensors(build_in(tmp_path, recipe).folder)
    policy = resolve(stack, [{"deep": 2}])
    run = run_of(stack, [{"deep": 2}])
    assert run.memory.state == 2 * policy.num_frozen + 16 * policy.num_trained
    assert run.full_memory.state == 16 * stack.num_parameters
    assert run_of(stack, [{"deep": 2}], optimizer="sgd").memory.moments == 0
    sharded = run_of(stack, [{"deep": 2}], processes=4, sharded=True).memory
    assert sharded.state == run.memory.state / 4
    # A quarter of the step's tokens; copies of the matrices (all but four gains) do not shrink.
    copies = 2 * (policy.num_trained - 4 * 32)
    assert sharded.activations - copies == (run.memory.activations - copies) / 4
    assert run_of(stack, [{"deep": 2}], processes=4).memory.state == run.memory.state


# ---- the page ----------------------------------------------------------------------------------


def test_the_table_says_what_is_an_estimate(folder: Path) -> None:
    run = run_of(read_model_tensors(folder / "llama"), [{"shallow": 1}], processes=2)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(run.table())
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert lines[0].split("  ")[-1].strip() == "ratio"
    assert [line.split("  ")[0] for line in lines[1:5]] == [
        "forward, FLOPs",
        "backward to activations",
        "gradients of weights",
        "all, FLOPs",
    ]
    assert "activations (rough estimate)" in "\n".join(lines)
    assert lines[-1] == (
        "10,000 tokens in 157 steps of 64, sequences of 16, 2 processes, 32 tokens at a time on "
        "each"
    )


def test_the_document_has_whole_runs_and_both_sides(folder: Path) -> None:
    run = run_of(read_model_tensors(folder / "llama"), [{"shallow": 1}])
    document = run.as_dict()
    assert document["steps"] == 157
    assert document["flops_ratio"] == run.ratio
    assert document["policy"]["flops"]["total"] == run.flops.total * 10_000
    assert document["full"]["memory_bytes"]["state"] == run.full_memory.state
    assert document["estimates"] == ["memory_bytes.activations", "memory_bytes.logits"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tokens": 0}, "tokens is 0\n  fix: write a number of at least 1"),
        ({"processes": 0}, "processes is 0\n  fix: write a number of at least 1"),
        ({"at_once": 0}, "at_once is 0\n  fix: write a number of at least 1"),
        (
            {"optimizer": "adam"},
            "unknown optimizer 'adam'\n  fix: did you mean 'adamw'? (known: adamw, sgd)",
        ),
        (
            {"trained_dtype": "F8_E4M3"},
            "nothing learns in 'F8_E4M3'\n  fix: known: BF16, F16, F32, F64",
        ),
        (
            {"processes": 8},
            "a step of 64 tokens is less than one sequence of 16 on each of 8 processes\n"
            "  fix: take 128 tokens a step or more, or shorter sequences",
        ),
    ],
)
def test_what_no_run_can_be_is_refused(folder: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(HybridizeError) as caught:
        run_of(read_model_tensors(folder / "llama"), ["full"], **options)
    assert str(caught.value) == text
