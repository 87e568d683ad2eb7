"""mergekit as a library: `python -m hybridize.assembler.worker.merge_process`, its own process.

Of its own, since mergekit keeps loaded checkpoints, follows the hash seed of its process, and is
imported with torch. It runs in the merge's staging folder: `job.json`, `donors/`, and `model/`,
which it fills; what is wrong with the config goes to `findings.json`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridize.errors import did_you_mean
from hybridize.files.yaml_source import KEY, as_dict, as_list
from hybridize.machine.lifeline import end_with_parent

SHARD = 10**9  # bytes; mergekit holds a shard in memory until it is full
CHUNK = 1 << 22  # elements that are looked at together
THREADS = 2  # of torch: sums over a tensor follow the number of threads

Mistake = tuple[tuple[str | int, ...], str, str | None]  # place in the config, finding, fix


def main(folder: Path) -> None:
    """Check the config, merge, check the numbers."""
    os.chdir(folder)
    job = json.loads(Path("job.json").read_bytes())
    end_with_parent(job["parent"])
    if mistakes := [*_mistakes(job["config"]), *_moved_layers(job["stack"])]:
        Path("findings.json").write_text(json.dumps(mistakes))
        return
    _merge(job["config"])
    if broken := _not_finite(Path("model")):
        text = f"tensor '{broken}' of the merge is not finite"
        Path("findings.json").write_text(json.dumps([((), text, "are the donors themselves?")]))


def _mistakes(config: Mapping[str, Any]) -> Iterator[Mistake]:
    """What mergekit does not say, or says in a traceback: unknown keys, methods, parameters."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge_methods.registry import registered_methods
    from pydantic import ValidationError

    methods = {method.spec.name: method.spec for method in registered_methods()}
    name = config.get("merge_method")
    if name not in methods:
        known = sorted(methods)
        yield ("merge_method",), f"unknown method {name!r}", did_you_mean(str(name), known)
        return
    parameters = sorted(parameter.name for parameter in methods[name].parameters)
    for where, section, known in _sections(config, parameters):
        for key in section:
            if key not in known:
                fix = did_you_mean(str(key), known) if known else f"'{name}' has none"
                yield (*where, key, KEY), f"unknown key '{key}'", fix
    try:
        MergeConfiguration.model_validate(config)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            yield detail["loc"], detail["msg"].lower(), None
    except RuntimeError as error:
        yield (), str(error), None


def _sections(
    config: Mapping[str, Any], parameters: list[str]
) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any], list[str]]]:
    """(place, mapping, keys that it may have) of each part of a config."""
    from mergekit import config as schema
    from mergekit.tokenizer.config import TokenizerConfig

    def keys(model: Any) -> list[str]:
        return sorted(model.model_fields)

    yield (), config, keys(schema.MergeConfiguration)
    yield ("parameters",), as_dict(config.get("parameters")), parameters
    yield ("tokenizer",), as_dict(config.get("tokenizer")), keys(TokenizerConfig)
    holders: list[tuple[tuple[str | int, ...], Mapping[str, Any]]] = [((), config)]
    for name, module in as_dict(config.get("modules")).items():
        yield ("modules", name), as_dict(module), keys(schema.OutputModuleDefinition)
        yield (
            ("modules", name, "parameters"),
            as_dict(as_dict(module).get("parameters")),
            parameters,
        )
        holders.append((("modules", name), as_dict(module)))
    entries = [
        ((*where, group, i), as_dict(entry), model)
        for where, holder in holders
        for group, model in (
            ("models", schema.InputModelDefinition),
            ("slices", schema.OutputSliceDefinition),
        )
        for i, entry in enumerate(as_list(holder.get(group)))
    ]
    entries += [
        ((*where, "sources", j), as_dict(source), schema.InputSliceDefinition)
        for where, entry, _ in entries
        for j, source in enumerate(as_list(entry.get("sources")))
    ]
    for where, entry, model in entries:
        yield where, entry, keys(model)
        yield (*where, "parameters"), as_dict(entry.get("parameters")), parameters


def _moved_layers(stack: list[list[list[int]]]) -> Iterator[Mistake]:
    """mergekit moves weights, and leaves the config's kinds of layers where they were."""
    from transformers import AutoConfig

    used = sorted({donor for sources in stack for donor, _ in sources} | {0})
    kinds = {
        number: getattr(
            AutoConfig.from_pretrained(f"donors/{number}").get_text_config(decoder=True),
            "layer_types",
            None,
        )
        for number in used
    }
    base = kinds[0]
    for i, sources in enumerate(stack):
        for donor, layer in sources:
            own = kinds[donor]
            if base and own and (i >= len(base) or base[i] != own[layer]):
                here = base[i] if i < len(base) else "absent"
                yield (
                    ("slices",),
                    f"layer {i} of the merge is made of a layer of kind {own[layer]}, and "
                    f"mergekit's config says {here}",
                    "stack layers by the slots of a recipe, which move the kinds along",
                )
                return


def _merge(config: dict[str, Any]) -> None:
    import torch
    from mergekit.common import ModelReference
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    class Ordered(MergeConfiguration):  # type: ignore[misc]
        """Names its models in the order of the file; without a base model the first one gives
        config and tokenizer, where mergekit takes any."""

        def referenced_models(self) -> list[Any]:
            found = set(super().referenced_models())
            numbers = sorted(found, key=lambda model: int(model.model.path.split("/")[1]))
            return [ModelReference.model_validate(model) for model in numbers]

    torch.set_num_threads(THREADS)
    options = MergeOptions(
        quiet=True, write_model_card=False, out_shard_size=SHARD, random_seed=0, num_threads=THREADS
    )
    run_merge(Ordered.model_validate(config), "model", options)


def _not_finite(folder: Path) -> str | None:
    """Name of a tensor that holds NaN or infinity."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                flat = tensors.get_tensor(name).flatten()
                if not flat.is_floating_point() or flat.element_size() < 2:
                    continue
                if not all(bool(part.isfinite().all()) for part in flat.split(CHUNK)):
                    return str(name)
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
