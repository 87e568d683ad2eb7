"""Which learning rates suit how much learns, on a real model.

    python benchmarks/bench_rates.py MODEL --new FILE --old FILE [--steps 16] [--json FILE]

Builds MODEL as it is, and with a bridge at half depth that begins as nothing, and trains it by
`hybridize cpt` for 16 steps of 4 rows of 128 tokens: several policies, several rates for each. The
texts should be one the model does not know and one that it knows, of which as little is held out as
tells the difference. For each it prints how the held-out loss moved, in nats per token.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from hybridize.model.checkpoint import read_json

BATCH, LENGTH = 4, 128
POLICIES: dict[str, tuple[list[Any], list[float]]] = {
    "shallow 25 %": ([{"shallow": 0.25}], [3e-4, 1e-3, 1e-4]),
    "full": (["full"], [3e-5, 1e-4, 3e-4]),
    "bridge": (["bridges"], [1e-3, 3e-3, 1e-2]),
    "shallow 50 %": ([{"shallow": 0.5}], [1e-4, 3e-4, 1e-3]),
    "embeddings": (["embeddings"], [1e-4, 1e-3, 3e-4]),
    "shallow 10 %": ([{"shallow": 0.1}], [1e-3, 3e-3]),
    "deep 25 %": ([{"deep": 0.25}], [3e-4, 1e-3]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--policy", action="append", choices=list(POLICIES))
    parser.add_argument("--rate", action="append", type=float, help="instead of those of a policy")
    parser.add_argument("--json", type=Path, help="append each result to this file as it comes")
    parser.add_argument("--folder", type=Path, help="where models go")
    arguments = parser.parse_args()
    config = read_json(arguments.model / "config.json")
    depth = int(config.get("num_hidden_layers") or config["text_config"]["num_hidden_layers"])
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for bridged in (False, True):
            file = folder / f"{bridged}.yaml"
            file.write_text(yaml.safe_dump(structure(arguments.model, depth, bridged=bridged)))
            hybridize("build", file, "--out", folder / str(bridged), "--check", "structure")
        for policy in arguments.policy or POLICIES:
            for rate in arguments.rate or POLICIES[policy][1]:
                found = run(folder, policy, rate, depth, arguments)
                print(json.dumps(found), flush=True)
                if arguments.json:
                    with arguments.json.open("a") as lines:
                        lines.write(f"{json.dumps(found)}\n")


def structure(model: Path, depth: int, *, bridged: bool) -> dict[str, Any]:
    bridges = {"where": [depth // 2] if bridged else "none", "init": "identity"}
    slots = [{"from": "donor", "layers": f"0-{depth - 1}"}]
    return {
        "donors": {"donor": {"model": str(model.absolute())}},
        "slots": slots,
        "bridges": bridges,
    }


def run(
    folder: Path, policy: str, rate: float, depth: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train once; the held-out losses before and after."""
    train, _ = POLICIES[policy]
    bridged = policy == "bridge"
    cpt = {
        "train": train,
        "data": {"new": [str(arguments.new.absolute())], "old": [str(arguments.old.absolute())]},
        "tokens": arguments.steps * BATCH * LENGTH,
        "batch": BATCH,
        "length": LENGTH,
        "learning_rate": rate,
    }
    file, out = folder / "train.yaml", folder / "trained"
    file.write_text(
        yaml.safe_dump({**structure(arguments.model, depth, bridged=bridged), "cpt": cpt})
    )
    hybridize("cpt", file, "--built", folder / str(bridged), "--out", out, "--device", "cpu")
    record = read_json(out / "hybridize.json")["training"][-1]
    shutil.rmtree(out)
    (new, old) = record["losses"].values()
    return {
        "model": arguments.model.name,
        "policy": policy,
        "rate": rate,
        "trained": record["stages"][0]["num_trained"],
        "new": new,
        "old": old,
    }


def hybridize(*arguments: Any) -> None:
    command = [sys.executable, "-m", "hybridize", *map(str, arguments), "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    main()
