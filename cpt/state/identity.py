"""What decides a training: noted in its folder and in each checkpoint, and compared at resume.

What only watches it (guards, how often it saves and evaluates) and what runs it (processes, engine)
is left out: with these changed, a training may go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from hybridize.cpt.plan.model_tensors import ModelTensors
from hybridize.cpt.plan.policy_words import difference
from hybridize.cpt.plan.stages import Stage
from hybridize.errors import CheckFailed, Finding
from hybridize.files.hashes import file_hash
from hybridize.model.checkpoint import open_checkpoint
from hybridize.recipe.sections.cpt import CptSpec

FILE = "training.json"  # says that a folder is ours, and of what training
WATCHING = {"data", "stages", "train", "guards", "save_every", "evaluate_every", "micro_batch_size"}

Identity = dict[str, Any]


def identity_of(stack: ModelTensors, stages: Sequence[Stage], spec: CptSpec) -> Identity:
    """What is known before any text is read."""
    files = sorted({tensor.file for tensor in open_checkpoint(stack.folder).tensors.values()})
    # Which checkpoints there are decides the result where their mean is taken.
    watching = WATCHING - ({"save_every"} if spec.average > 1 else set())
    # The rates that count are those of the stages.
    settings = spec.model_dump(mode="json", exclude=watching | {"learning_rate", "learning_rates"})
    return {
        "base": {
            "files": {file.name: file_hash(file) for file in files},
            "config": blake3((stack.folder / "config.json").read_bytes()).hexdigest(),
        },
        "stages": [stage.as_dict() for stage in stages],
        "settings": settings,
    }


def key_of(identity: Identity) -> str:
    """BLAKE3 of it, plans by the hash of what they train."""
    stages = [[stage["blake3"], stage["steps"], stage["rates"]] for stage in identity["stages"]]
    text = json.dumps({**identity, "stages": stages}, sort_keys=True)
    return blake3(text.encode()).hexdigest()


def check_same(noted: Identity, now: Identity, place: Path) -> None:
    """Only the same training may go on; what is not known yet of one of them is passed over.

    Raises:
        CheckFailed: they differ, and in what.
    """
    found = list(_differences(noted, now))
    if found:
        raise CheckFailed.of(
            Finding(
                text,
                "train into another folder, or start over with --force"
                if i == len(found) - 1
                else None,
                str(place),
            )
            for i, text in enumerate(found)
        )


def _differences(noted: Identity, now: Identity) -> Any:
    if noted.get("base") != now.get("base"):
        yield "another model is trained than when this training began"
    yield from _plans(noted.get("stages", []), now.get("stages", []))
    yield from _settings(noted.get("settings", {}), now.get("settings", {}))
    if "packed" in noted and "packed" in now and noted["packed"] != now["packed"]:
        yield "documents were packed into rows otherwise when this training began"
    if "text" in noted and "text" in now:
        yield from _texts(noted["text"], now["text"])


def _plans(noted: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Any:
    if len(noted) != len(now):
        yield f"another freeze plan: it has {len(noted)} stages, this run {len(now)}"
        return
    for i, (one, other) in enumerate(zip(noted, now, strict=True)):
        if one["blake3"] != other["blake3"]:
            yield f"another freeze plan in stage {i}:\n{_indented(difference(one, other))}"
        if one["steps"] != other["steps"]:
            yield f"stage {i} has {one['steps']} steps, in this run {other['steps']}"
        for role in sorted({*one["rates"]} & {*other["rates"]}):
            was, is_now = (stage["rates"][role]["value"] for stage in (one, other))
            if was != is_now:
                yield f"learning rate of {role} in stage {i} was {was:g}, in this run {is_now:g}"


def _settings(noted: Mapping[str, Any], now: Mapping[str, Any]) -> Any:
    for name in sorted({*noted, *now}):
        if noted.get(name) != now.get(name):
            yield f"{name} was {noted.get(name)}, in this run it is {now.get(name)}"


def _texts(noted: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Any:
    names = [[f"{text['name']} ({text['kind']})" for text in texts] for texts in (noted, now)]
    if names[0] != names[1]:
        yield f"the text was {', '.join(names[0])}, in this run it is {', '.join(names[1])}"
        return
    for one, other in zip(noted, now, strict=True):
        words = {"share": "share", "rows_blake3": "rows", "held_out_blake3": "held-out rows"}
        for key in (key for key in words if one[key] != other[key]):
            yield f"other text: the {words[key]} of '{one['name']}' was another one"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
