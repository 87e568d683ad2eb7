"""Every command that writes, and a folder that it works in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.readers import code, prose, save_reader
from tests.support.stacks import UNFITTED, build_in, write_recipe

RECIPE: dict[str, Any] = {
    "name": "mine",
    "donors": {"a": {"model": "a"}, "b": {"model": "b"}},
    "slots": [{"from": "a", "layers": "0-1"}, {"from": "b", "layers": "2-3"}],
    "bridges": UNFITTED,
    "shard_size": "40KB",
    "calibration": {"data": ["prose.txt"], "tokens": 1024, "length": 32},
    "diagnostics": {"tokens": 512, "length": 32, "seeds": 1, "parts": ["layer"], "probes": []},
    "cpt": {
        "train": [{"shallow": 1}],
        "data": {"new": ["code.txt"]},
        "tokens": 1024,
        "length": 32,
        "batch": 4,
    },
}


#: Command -> its arguments, with OUT for what it is to make.
COMMANDS = {
    "build": ["build", "plain.yaml", "--check", "structure", "--out", "OUT"],
    "diagnose": ["diagnose", "a", "--text", "prose.txt", "--tokens", "512", "--seeds", "1",
                 "--part", "layer", "--out", "OUT"],
    "recommend": ["recommend", "placed.yaml", "--write", "OUT"],
    "cpt": ["cpt", "recipe.yaml", "--built", "built", "--out", "OUT"],
}  # fmt: skip


def filled(folder: Path) -> Path:
    """Donors, texts, a built model, and recipes for every command."""
    save_reader(folder / "a", "llama")
    save_reader(folder / "b", "qwen3")
    (folder / "code.txt").write_text(code()[:6000])
    (folder / "prose.txt").write_text(prose()[:6000])
    write_recipe(folder / "recipe.yaml", RECIPE)
    plain = {key: part for key, part in RECIPE.items() if key != "calibration"}
    write_recipe(folder / "plain.yaml", plain)
    build_in(folder, plain, "built")
    write_recipe(folder / "recipe.yaml", RECIPE)
    placed = {key: part for key, part in RECIPE.items() if key != "slots"}
    donors = {"sound": {"model": "sound"}, "hurt": {"model": "hurt"}}
    write_recipe(folder / "placed.yaml", placed | {"donors": donors, "placement": {"top": 1}})
    return folder
