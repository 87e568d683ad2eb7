"""On real pretrained models, an independent computation finds what `diagnose` finds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridize.cli import main
from hybridize.diagnostics.subject.items import Item, find_items
from hybridize.diagnostics.subject.trace import Trace, read_document
from tests.support.readers import prose, write_text
from tests.support.stacks import write_recipe
from tests.support.trained_donors import save_trained

SETS = {"agreement": 6}  # and how many items of each


def diagnosed(model: Path, items: dict[str, list[Item]], folder: Path) -> Trace:
    """What the command says, its perturbations on items as well as on text."""
    for name, some in items.items():
        lines = [json.dumps({"prompt": i.prompt, "answer": i.answer}) for i in some]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    data = {
        "donors": {"real": {"model": str(model)}},
        "slots": [{"from": "real", "layer": 0}],
        "calibration": {"data": [write_text(folder)]},
        "diagnostics": {
            "probes": [f"./{name}.jsonl" for name in items],
            "perturbations": ["skip"],
            "parts": ["layer"],
            "perturb": "all",
            "tokens": 256,
            "length": 32,
        },
    }
    recipe, out = write_recipe(folder / "recipe.yaml", data), folder / "out"
    options = ["--compute-dtype", "float32", "--out", str(out), "--built", str(folder / "none")]
    done = CliRunner().invoke(main, ["diagnose", str(recipe), *options, "--offline"])
    assert done.exit_code == 0, done.output[-2000:]
    (trace,) = read_document(out / "trace.json").models
    return trace


class Alone:
    """The same by transformers' model, hooks, and formulas written down a second time."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.depth = len(self.model.model.layers)

    def ask(self, item: Item) -> tuple[Tensor, int]:
        """The prompt's tokens, and the first token of the answer."""
        whole = self.tokenizer(item.prompt + item.answer)["input_ids"]
        alone = self.tokenizer(item.prompt)["input_ids"]
        same = [a == b for a, b in zip(alone, whole, strict=False)]
        first = same.index(False) if False in same else len(same)
        return torch.tensor([whole[:first]]), whole[first]

    def says(self, tokens: Tensor, skipped: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Probabilities of what follows (V,), and the stream at the last position by depth."""
        states: list[Tensor] = []

        def hook(index: int) -> Any:
            def after(_: Any, args: Any, output: Any) -> Any:
                gave = output[0] if isinstance(output, tuple) else output
                states.extend([args[0][0, -1]] if index == 0 else [])
                states.append(gave[0, -1])
                return args[0] if index == skipped else None

            return after

        layers = enumerate(self.model.model.layers)
        handles = [layer.register_forward_hook(hook(i)) for i, layer in layers]
        logits = self.model(tokens, use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        return logits.double().softmax(-1), states

    def log_p(self, state: Tensor) -> Tensor:
        """Logit lens: the model's own norm and head, (V,)."""
        logits: Tensor = self.model.lm_head(self.model.model.norm(state[None, None]))[0, 0]
        return logits.double().log_softmax(-1)


def divergence(p: Tensor, q: Tensor) -> float:
    middle = (p + q) / 2
    return float(sum(torch.special.xlogy(x, x / middle).sum() for x in (p, q)) / 2)


def particle(log_p: list[float], base: float) -> float:
    half = base + (log_p[-1] - base) / 2
    return max((depth + 1 for depth, value in enumerate(log_p) if value < half), default=0)


def quantile(values: list[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_an_independent_computation_agrees(name: str, real_models: Path, tmp_path: Path) -> None:
    """Sensitivity of every layer, and what the logit lens says of task particles."""
    items = {s: find_items(s, tmp_path).items[:num] for s, num in SETS.items()}
    check(real_models / name, items, tmp_path)


@torch.no_grad()
def test_it_agrees_on_a_small_model(tmp_path: Path) -> None:
    """Asked for what it says itself, so that items are answered."""
    alone, text, items = Alone(save_trained(tmp_path / "small")), prose(), []
    for start in range(0, 900, 40):
        prompt = text[start : start + 60]
        best = alone.says(torch.tensor([alone.tokenizer(prompt)["input_ids"]]))[0].argmax()
        item = Item(prompt, alone.tokenizer.decode([best]))
        if item.answer.strip() and alone.ask(item)[1] == int(best):
            items.append(item)
    assert len(items) > 4
    check(tmp_path / "small", {"own": items}, tmp_path)


@torch.no_grad()
def check(model: Path, items: dict[str, list[Item]], folder: Path) -> None:
    trace = diagnosed(model, items, folder)
    alone = Alone(model)
    for found in (s for s in trace.sets if s.kind == "task"):
        asked = [alone.ask(item) for item in items[Path(found.name).stem]]
        clean = [alone.says(tokens) for tokens, _ in asked]
        pairs = [(tokens, p) for (tokens, _), (p, _) in zip(asked, clean, strict=True)]
        js = [
            sum(divergence(p, alone.says(tokens, k)[0]) for tokens, p in pairs) / len(pairs)
            for k in range(alone.depth)
        ]
        assert trace.curve("skip", on=found.name).mean == pytest.approx(js, abs=1e-5)
        marginal = torch.stack([p for p, _ in clean]).mean(0).log()
        right = [
            ([float(alone.log_p(s)[a]) for s in states[:-1]] + [math.log(p[a])], float(marginal[a]))
            for (_, a), (p, states) in zip(asked, clean, strict=True)
            if int(p.argmax()) == a
        ]
        assert found.correct == len(right) > 1
        depths = [particle(log_p, base) for log_p, base in right if log_p[-1] - base > 1e-4]
        lens = found.lenses["logit"]
        assert lens.quartiles == [quantile(depths, share) for share in (0.25, 0.5, 0.75)]
        by_depth = torch.tensor([log_p for log_p, _ in right]).mean(0).tolist()
        assert lens.logp == pytest.approx(by_depth, rel=1e-4, abs=1e-4)
