"""What bad or large input costs: little, whatever it says of itself."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.random_llama import write_llama
from hybridize.assembler.plan.planning import Plan, make_plan
from hybridize.assembler.plan.report import plan_as_dict, plan_table
from hybridize.errors import MOST, MOST_JSON, Finding, HybridizeError
from hybridize.model.donors import load_donor
from hybridize.recipe.file import load_recipe
from tests.support.stacks import save_donor

LAYERS = 20


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cost")
    for i in range(5):
        write_llama(folder / f"d{i}", width=64, layers=LAYERS, seed=i, shard=30 << 20)
    return folder


def planned(folder: Path, num_slots: int) -> Plan:
    """Every slot of another donor than the one below, with a bridge between them."""
    slots = [f"  - {{from: d{i % 5}, layer: {i % LAYERS}}}" for i in range(num_slots)]
    names = ", ".join(f"d{i}: {{model: d{i}}}" for i in range(5))
    file = folder / f"{num_slots}.yaml"
    head = f"donors: {{{names}}}\nbridges: {{init: random, where: changes}}\nslots:\n"
    file.write_text(head + "\n".join(slots) + "\n")
    return make_plan(load_recipe(file))


def cpu(folder: Path, num_slots: int) -> float:
    """Seconds for a plan, its table and its JSON."""
    start = time.process_time()
    plan = planned(folder, num_slots)
    with (folder / "table").open("w") as out:
        Console(file=out, width=200, markup=False).print(plan_table(plan, full=True))
    json.dumps(plan_as_dict(plan))
    return time.process_time() - start


def test_a_plan_takes_time_in_proportion_to_its_slots(donors: Path) -> None:
    """9,000 slots took 23 s."""
    cpu(donors, 10)  # imports
    small, large = cpu(donors, 300), cpu(donors, 3000)
    assert large < 25 * small
    assert large < 5.0
    lines = (donors / "table").read_text().splitlines()
    assert len([line for line in lines if "  linear, init random" in line]) == 2999
    assert len({len(line) for line in lines[10:200]}) < 4  # columns stand below each other


def test_a_hundred_slots_of_five_donors_take_half_a_second(donors: Path) -> None:
    cpu(donors, 10)
    assert min(cpu(donors, 100) for _ in range(3)) < 0.5


@pytest.mark.parametrize("depth", [10**9, 10**18, 10**30])
def test_a_depth_without_layers_is_refused_before_it_is_counted_out(
    tmp_path: Path, depth: int
) -> None:
    """31 seconds and 4.6 GB."""
    save_donor(tmp_path / "a", "llama")
    file = tmp_path / "a/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": depth}))
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(HybridizeError, match=f"config.json says {depth} layers"):
        load_donor(tmp_path / "a", name="a", source="a", place="x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 2.0
    assert peak < 20e6


def test_messages_are_short_whatever_they_speak_of() -> None:
    """They were of up to 92 kB."""
    long = "x" * 100_000
    error = HybridizeError.of(Finding(f"{long} {i}", long, long) for i in range(1000))
    assert str(error).endswith(f"... and {1000 - MOST} more")
    assert len(str(error)) < MOST * 5000
    document = error.as_dict()
    assert (len(document["errors"]), document["more"]) == (MOST_JSON, 1000 - MOST_JSON)
    assert all(len(value) < 2100 for found in document["errors"] for value in found.values())


def test_few_mistakes_are_told_whole() -> None:
    error = HybridizeError.of(Finding(f"wrong {i}", f"fix {i}", f"place {i}") for i in range(MOST))
    assert str(error).count("\n") == 2 * MOST - 1
    assert "more" not in error.as_dict()
