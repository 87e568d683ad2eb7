"""The same recipe and donors give the same bytes, whatever the process was salted with."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, OlmoHybridForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from tests.support.readers import save_reader, write_text
from tests.support.tiny import tiny_config

SEEDS = ("0", "1", "4242")
RECIPES = {
    "native": """
donors: {a: {model: llama}, b: {model: other}}
slots: [{from: a, layers: 0-3}, {from: b, layers: [3, 3, 1]}]
bridges: {where: none}
shard_size: 60KB
""",
    "hybrid": """
donors: {llama: {model: llama}, qwen: {model: qwen}, gdn: {model: gdn}}
slots:
  - {from: gdn, layers: 0-1}
  - {from: qwen, layers: 1-2}
  - {from: llama, layers: [3, 0]}
  - {from: llama, layer: 1, mixer: {from: qwen, layer: 3}}
bridges: {kind: linear, where: changes, init: random, norm: true, bias: true}
dtype: bfloat16
shard_size: 60KB
""",
}


def _save(folder: Path, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
    model.to(dtype).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Donors of three architectures, two widths and two dtypes, and two recipes."""
    folder = tmp_path_factory.mktemp("determinism")
    torch.manual_seed(0)
    _save(folder / "llama", LlamaForCausalLM(tiny_config("llama")))
    _save(folder / "other", LlamaForCausalLM(tiny_config("llama")))
    # Wide enough for a decomposition to be shared between threads.
    wide = Qwen3ForCausalLM(tiny_config("qwen3", hidden_size=640))
    _save(folder / "qwen", wide, torch.bfloat16)
    _save(folder / "gdn", OlmoHybridForCausalLM(tiny_config("olmo_hybrid", hidden_size=512)))
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def _build(folder: Path, name: str, seed: str, *, threads: int) -> dict[str, str]:
    """Build by the real command; sha256 of each file of the result."""
    out = folder / f"built-{seed}" / name  # of one name: the manifest notes where donors lie
    arguments = ["build", folder / f"{name}.yaml", "--out", out, "--check", "structure"]
    subprocess.run(
        [sys.executable, "-m", "hybridize", *arguments],
        env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        check=True,
    )
    target = "native" if name == "native" else "hybrid"
    assert json.loads((out / "hybridize.json").read_text())["target"] == target
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_hash_seed_and_threads_do_not_reach_the_bytes(folder: Path) -> None:
    """Who publishes a recipe lets others rebuild the model, and compare hashes."""
    jobs = [(name, seed) for name in RECIPES for seed in SEEDS]
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda job: _build(folder, *job, threads=len(job[1])), jobs)
        built = dict(zip(jobs, results, strict=True))

    for name in RECIPES:
        first, *others = (built[name, seed] for seed in SEEDS)
        assert {"config.json", "hybridize.json", "README.md"} < first.keys()
        assert sum(file.endswith(".safetensors") for file in first) > 1
        assert others == [first, first]


def test_the_hash_seed_does_not_reach_a_fit(tmp_path: Path) -> None:
    """Of the number of threads nothing is claimed there: sums over tokens may round by it."""
    save_reader(tmp_path / "a")
    save_reader(tmp_path / "b", "olmo_hybrid", seed=1, hidden_size=48)
    (tmp_path / "fitted.yaml").write_text(f"""
donors: {{a: {{model: a}}, b: {{model: b}}}}
slots: [{{from: a, layers: 0-1}}, {{from: b, layers: 0-1}}]
calibration: {{data: [{write_text(tmp_path)}], tokens: 3000, length: 32}}
""")
    one, *others = (_build(tmp_path, "fitted", seed, threads=1) for seed in SEEDS)
    assert all(other == one for other in others)
