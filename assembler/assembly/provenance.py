"""Where a model came from: hybridize.json and the model card.

Both follow from recipe and donors alone (no dates, no paths of the machine), so that the same
recipe gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blake3 import blake3

import hybridize
from hybridize.assembler.assembly.fit_report import loss_rows
from hybridize.assembler.plan.planning import Plan
from hybridize.model.donors import Donor
from hybridize.model.manifest import FORMAT, sealed
from hybridize.model.shards import Output, Shard
from hybridize.recipe.portable import portable, portable_text

LIBRARIES = ("torch", "transformers", "safetensors", "mergekit")


def manifest_json(
    plan: Plan,
    shards: Iterable[Shard],
    *,
    hashes: Mapping[str, str],
    files: Mapping[str, str],
    weights: Mapping[str, str],
    fit: Mapping[str, Any] | None,
    tokenizer_ids: str | None,
    out: Path,
) -> str:
    """Text of hybridize.json.

    Args:
        hashes: BLAKE3 of each tensor of the result, by name.
        files: BLAKE3 of every file beside the weights, by name.
        weights: BLAKE3 of all that is no tensor in each of the files of weights, by name.
        tokenizer_ids: fingerprint of what the result's tokenizer gives, if it was opened.
        fit: how bridges were fitted, on which text, and the losses of the result and its controls.
        out: the target; local donors are noted relative to it.
    """
    spec, folder = plan.recipe.recipe, plan.recipe.folder
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": plan.name,
        "target": plan.target,
        "reason": plan.reason,
        "dtype": plan.dtype_reason,
        "recipe": {
            "file": plan.recipe.document.path.name,
            "folder": os.path.relpath(folder, out.absolute()),
            "text": portable_text(plan.recipe.document),
            "resolved": portable(
                spec.model_dump(mode="json", by_alias=True, exclude_none=True), folder
            ),
        },
        "embeddings": plan.embeddings,
        "head": plan.head,
        "tokenizer": plan.tokenizer.name if plan.tokenizer else None,
        "tokenizer_ids": tokenizer_ids,
        "tied": plan.tied,
        "donors": {name: _donor(donor, folder, out) for name, donor in plan.donors.items()},
        "slots": [asdict(slot) for slot in plan.slots],
        "bridges": {where: asdict(bridge) for where, bridge in plan.bridges.items()},
        "lineages": [asdict(lineage) for lineage in plan.lineages],
        "fit": portable(fit, folder),
        "versions": {"hybridize": hybridize.__version__, **{n: version(n) for n in LIBRARIES}},
        "files": dict(files),
        "weights": dict(weights),
        "tensors": {
            output.name: {
                "file": shard.name,
                "dtype": output.dtype,
                "shape": list(output.shape),
                "blake3": hashes[output.name],
                "donor": output.donor,
                "from": list(dict.fromkeys(r.tensor for r in output.ranges)),
                "copied": output.copied,
                "part": _is_part(plan, output),
            }
            for shard in shards
            for output in shard.outputs
        },
    }
    return sealed(manifest)


def _is_part(plan: Plan, output: Output) -> bool:
    """Whether only a part of a donor's tensor went in."""
    if output.donor is None:
        return False
    tensors = plan.donors[output.donor].checkpoint.tensors
    whole = {r.tensor: tensors[r.tensor].nbytes for r in output.ranges}
    return sum(whole.values()) != sum(r.nbytes for r in output.ranges)


def _donor(donor: Donor, folder: Path, out: Path) -> dict[str, Any]:
    return {
        "source": portable(donor.source, folder),
        "commit": donor.commit,
        "folder": os.path.relpath(donor.folder, out.absolute()) if _is_local(donor) else None,
        **({"merge": donor.merge} if donor.merge else {}),
        "license": donor.license,
        "model_type": donor.model_type,
        "bytes": donor.checkpoint.nbytes,
        "headers": header_hash(donor),
    }


def _is_local(donor: Donor) -> bool:
    """Neither from the hub nor out of the cache of merges, which lies elsewhere on each machine."""
    return donor.commit is None and donor.merge is None


def header_hash(donor: Donor) -> str:
    """BLAKE3 of a donor's config and of the names, dtypes and shapes of all its tensors."""
    tensors = sorted((t.name, t.dtype, t.shape) for t in donor.checkpoint.tensors.values())
    text = json.dumps([donor.checkpoint.config, tensors], sort_keys=True)
    return blake3(text.encode()).hexdigest()


def model_card(plan: Plan, fit: Mapping[str, Any] | None = None) -> str:
    """Text of README.md."""
    licenses = {donor.license for donor in plan.donors.values()}
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if len(licenses) == 1 and None not in licenses:
        front.append(f"license: {licenses.pop()}")
    if hub := _hub_ids(plan):
        front += ["base_model:", *(f"- {source}" for source in hub)]
    front += ["tags:", "- hybridize", "- merge", "---"]
    return "\n".join([*front, "", f"# {plan.name}", "", *_card_body(plan, fit), ""])


def _hub_ids(plan: Plan) -> list[str]:
    """Models of the hub that the result was made of, those inside of merges too."""
    found = []
    for donor in plan.donors.values():
        inside = donor.merge["donors"] if donor.merge else []
        found += [donor.source] if donor.commit else []
        found += [merged["source"] for merged in inside if merged["commit"]]
    return list(dict.fromkeys(found))


def load_line(plan: Plan, folder: str, what: str = "AutoModelForCausalLM") -> str:
    """The line of Python that loads the result."""
    # To choose a tokenizer transformers reads the model's config, and asks about the code there:
    # none is needed. What code a tokenizer has of its own came from a donor.
    trust = what != "AutoTokenizer"
    remote = f", trust_remote_code={trust}" if plan.target == "hybrid" else ""
    return f'{what}.from_pretrained("{folder}"{remote})'


def _card_body(plan: Plan, fit: Mapping[str, Any] | None) -> list[str]:
    lines = [
        f"Assembled by hybridize {hybridize.__version__} "
        f"from {len(plan.donors)} donor{'s' * (len(plan.donors) != 1)}. "
        "Every tensor's origin and hash is in `hybridize.json`.",
        "",
        "| donor | source | commit | license | type |",
        "|---|---|---|---|---|",
    ]
    for name, donor in plan.donors.items():
        source = portable(donor.source, plan.recipe.folder)
        cells = (name, source, donor.commit or "", donor.license or "not stated")
        lines.append(f"| {' | '.join(cells)} | {donor.model_type} |")
    lines += ["", "| slots | donor | layers | note |", "|---|---|---|---|"]
    lines += [f"| {a} | {b} | {c} | {d} |" for a, b, c, d in slot_runs(plan)]
    lines += [
        "",
        f"Embeddings: {plan.embeddings}. Final norm and head: {plan.head}"
        f"{' (tied to the embeddings)' if plan.tied else ''}. "
        f"Tokenizer: {plan.tokenizer.name if plan.tokenizer else 'none'}.",
        "",
        f"Target: {plan.target}: {plan.reason}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = {load_line(plan, 'FOLDER')}",
        *([f"tokenizer = {load_line(plan, 'FOLDER', 'AutoTokenizer')}"] if plan.tokenizer else []),
        "```",
        *(_card_losses(fit) if fit else []),
        "",
        "## Recipe",
        "",
        "```yaml",
        portable_text(plan.recipe.document).rstrip("\n"),
        "```",
    ]
    return lines


def _card_losses(fit: Mapping[str, Any]) -> list[str]:
    domains = [domain["name"] for domain in fit["domains"]]
    lines = ["", "## Loss on held-out text, in nats per byte, before any training", ""]
    if fit["losses"] is None:
        return [*lines, "Not measured."]
    lines += [f"| model | {' | '.join(domains)} |", f"|---|{'---|' * len(domains)}"]
    for name, losses in loss_rows(fit):
        cells = (f"{losses[domain]['per_byte']:.3f}" for domain in domains)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def slot_runs(plan: Plan) -> list[tuple[str, str, str, str]]:
    """Runs of slots that follow each other in one donor: (slots, donor, layers, note)."""
    runs: list[tuple[str, str, str, str]] = []
    start = 0
    for i in range(1, len(plan.slots) + 1):
        if i < len(plan.slots) and _continues(plan, i):
            continue
        first, last = plan.slots[start], plan.slots[i - 1]
        bridge = plan.bridges.get(str(start))
        notes = [f"{bridge.kind} bridge {bridge.width_in}→{bridge.width_out}"] if bridge else []
        notes += [f"{s.path} of {s.donor} {s.layer}" for s in first.swaps]
        layers = _span(first.layer, last.layer)
        runs.append((_span(start, i - 1), first.donor, layers, ", ".join(notes)))
        start = i
    return runs


def _continues(plan: Plan, i: int) -> bool:
    this, before = plan.slots[i], plan.slots[i - 1]
    return (
        this.donor == before.donor
        and this.layer == before.layer + 1
        and not this.swaps
        and not before.swaps
        and str(i) not in plan.bridges
    )


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
