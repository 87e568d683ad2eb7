"""A mergekit config with its donors: what the merge reads, and what its result must hold.

mergekit itself looks at a config late, and loses tensors silently; so donors, layers and shapes are
checked here, from headers alone, and the result is compared with what was expected. No torch.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.errors import Finding, HybridizeError, did_you_mean
from hybridize.files.reading import expanded
from hybridize.files.yaml_source import Document, Place, as_dict, as_list, read_yaml
from hybridize.model.anatomy import Anatomy, dissect, text_config
from hybridize.model.checkpoint import Checkpoint, TensorHeader
from hybridize.model.donors import Donor, load_donor, locate
from hybridize.model.heads import ties

# Buffers that old checkpoints hold and no class of transformers asks for any more.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.masked_bias|attn\.bias)$")

DTYPES = ("bfloat16", "float16", "float32", "float64")  # of those that mergekit reads

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MergeFile:
    """A mergekit config, its donors resolved."""

    document: Document
    config: dict[str, Any]  # donors are called `donors/0`, `donors/1`, ...
    donors: tuple[Donor, ...]  # base model first, the others in the order of the file
    stack: tuple[tuple[tuple[int, int], ...], ...]  # (donor, layer) of each source, bottom up

    @property
    def method(self) -> str:
        return str(self.config.get("merge_method"))

    @property
    def new_tokenizer(self) -> bool:
        """Whether the merge may change the vocabulary."""
        return bool(self.config.get("tokenizer") or self.config.get("tokenizer_source"))

    def nbytes(self) -> int:
        """Size of the result, about, in bytes."""
        base = self.donors[0]
        return base.checkpoint.nbytes * len(self.stack) // max(base.depth, 1)


def read_merge_file(path: Path, *, offline: bool) -> MergeFile:
    """Read a mergekit config and the headers of its donors.

    Raises:
        HybridizeError: the file cannot be read; donors are missing, broken or of different
            architectures; layers that they do not have.
    """
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        raise HybridizeError("a merge file is a mapping, as mergekit reads it", place=str(path))
    config = copy.deepcopy(document.data)
    findings = list(_dtypes(document))
    donors = _take_donors(config, document, findings, offline=offline)
    if not donors and not findings:
        findings.append(Finding("names no model: neither models nor slices", place=str(path)))
    if findings:
        raise HybridizeError.of(findings)
    stack = _stack(config, document, donors, findings)
    if not findings:
        _compare(config, document, donors, stack, findings)
    if findings:
        raise HybridizeError.of(findings)
    return MergeFile(document, config, tuple(donors), tuple(stack))


def lost(merge: MergeFile, result: Checkpoint) -> list[str]:
    """Tensors that the donors hold and the result of the merge does not.

    A layer in another layout (experts fused or one by one) is whole if it has as many parameters.

    Raises:
        HybridizeError: the result has another depth than the merge.
    """
    made, base = dissect(result), merge.donors[0].anatomy
    if len(made.layers) != len(merge.stack):
        raise HybridizeError(
            f"mergekit wrote a config of {len(made.layers)} layers, its merge has "
            f"{len(merge.stack)}",
            fix="stack layers by the slots of a recipe",
            place=str(merge.document.path),
        )
    missing = []
    for i, ((donor, layer), *_) in enumerate(merge.stack):
        want = _shapes(merge.donors[donor].anatomy.layers[layer].tensors)
        have = _shapes(made.layers[i].tensors)
        missing += [f"{made.prefix}{i}.{name}" for name in _absent(want, have)]
    want, have = _outside(base), _outside(made)
    if ties(result):
        want = {name: shape for name, shape in want.items() if name not in _heads(base)}
    if merge.new_tokenizer:
        rows = {_stem(base, base.embedding), *_heads(base)}
        want = {n: (-1, *s[1:]) if n in rows else s for n, s in want.items()}
        have = {n: (-1, *s[1:]) if n in rows else s for n, s in have.items()}
    return [*missing, *(name for name in want if have.get(name) != want[name])]


def _shapes(tensors: Mapping[str, TensorHeader]) -> Shapes:
    return {name: t.shape for name, t in tensors.items() if not _BUFFERS.search(name)}


def _absent(want: Shapes, have: Shapes) -> list[str]:
    if sum(map(math.prod, have.values())) >= sum(map(math.prod, want.values())):
        return []
    return sorted(name for name in want if have.get(name) != want[name])


def _outside(anatomy: Anatomy) -> Shapes:
    tensors = (anatomy.embedding, *anatomy.head, *anatomy.norm, *anatomy.others)
    return {_stem(anatomy, t): t.shape for t in tensors if not _BUFFERS.search(t.name)}


def _heads(anatomy: Anatomy) -> set[str]:
    return {_stem(anatomy, tensor) for tensor in anatomy.head}


def _stem(anatomy: Anatomy, tensor: TensorHeader) -> str:
    # One checkpoint may have been written with the base model's prefix, and another without.
    return tensor.name.removeprefix(anatomy.base)


def _dtypes(document: Document) -> Iterator[Finding]:
    """mergekit reads them when it has begun to merge, and says no place."""
    for key in ("dtype", "out_dtype"):
        value = document.data.get(key)
        if value is not None and str(value).removeprefix("torch.") not in DTYPES:
            found = f"unknown {key} '{value!s:.60}'"
            yield Finding(found, did_you_mean(str(value), DTYPES), document.place((key,)))


# References to models


def _take_donors(
    config: dict[str, Any], document: Document, findings: list[Finding], *, offline: bool
) -> list[Donor]:
    """Resolve every reference to a model, and put the donor's number in its place."""
    donors: list[Donor] = []
    numbers: dict[Path, int] = {}
    for holder, key, where in _references(config):
        place = document.place(where)
        try:
            written, revision = _reference(holder[key], document.path.parent, place)
            folder, commit = locate(
                written, revision=revision, base=document.path.parent, place=place, offline=offline
            )
            if folder not in numbers:
                donor = load_donor(folder, name=written, source=written, commit=commit, place=place)
                _refuse_wrapper(donor, place)
                numbers[folder] = len(donors)
                donors.append(donor)
            holder[key] = {"model": {"path": f"donors/{numbers[folder]}"}}
        except HybridizeError as error:
            findings += [finding for finding in error.findings if finding not in findings]
    return donors


def _refuse_wrapper(donor: Donor, place: str) -> None:
    """mergekit reads the whole model, its config says what the parts are, and one is left over."""
    whole = donor.checkpoint.config
    if text_config(whole) is not whole:
        raise HybridizeError(
            f"'{donor.name}' is a multimodal model ({whole.get('model_type')}): the language model "
            "inside of it cannot be merged",
            fix="name it under donors, and stack its layers by slots instead of merging",
            place=place,
        )


def _references(config: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Place]]:
    """(mapping, key, place) of each reference to a model; the base model comes first."""
    yield from _reference_in(config, "base_model", ())
    yield from _in_models_and_slices(config, ())
    for name, module in as_dict(config.get("modules")).items():
        yield from _in_models_and_slices(as_dict(module), ("modules", name))
    if config.get("tokenizer_source") not in ("union", "base"):
        yield from _reference_in(config, "tokenizer_source", ())
    tokenizer = as_dict(config.get("tokenizer"))
    if tokenizer.get("source") not in ("union", "base"):
        yield from _reference_in(tokenizer, "source", ("tokenizer",))
    for token, entry in as_dict(tokenizer.get("tokens")).items():
        where: Place = ("tokenizer", "tokens", token)
        if "kind" in as_dict(as_dict(entry).get("source")):
            yield from _reference_in(entry["source"], "model", (*where, "source"))
        else:
            yield from _reference_in(as_dict(entry), "source", where)


def _in_models_and_slices(
    holder: Mapping[str, Any], where: Place
) -> Iterator[tuple[Any, Any, Place]]:
    for i, entry in enumerate(as_list(holder.get("models"))):
        yield from _reference_in(as_dict(entry), "model", (*where, "models", i))
    for i, entry in enumerate(as_list(holder.get("slices"))):
        here: Place = (*where, "slices", i)
        yield from _reference_in(as_dict(entry), "base_model", here)
        for j, source in enumerate(as_list(as_dict(entry).get("sources"))):
            yield from _reference_in(as_dict(source), "model", (*here, "sources", j))


def _reference_in(
    holder: Mapping[str, Any], key: str, where: Place
) -> Iterator[tuple[Any, Any, Place]]:
    if holder.get(key) is not None:
        yield holder, key, (*where, key)


def _reference(value: Any, base: Path, place: str) -> tuple[str, str | None]:
    """(folder or hub id, revision) of `org/name@revision` or mergekit's mapping."""
    lora = None
    if isinstance(value, dict):
        value, lora = value.get("model"), value.get("lora")
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        path, revision = value["path"], value.get("revision")
    elif isinstance(value, str) and (base / expanded(value)).is_dir():
        path, revision = value, None  # where mergekit would stumble over a '+' in the path
    elif isinstance(value, str):
        name, _, lora = value.partition("+") if lora is None else (value, "", lora)
        path, _, revision = name.partition("@")
    else:
        raise HybridizeError(f"{value!r:.60} is not a model", fix="a folder or hub id", place=place)
    if lora:
        raise HybridizeError(
            "an adapter on top of a model cannot be merged from here",
            fix="merge the adapter into its model first (peft: merge_and_unload), and name that",
            place=place,
        )
    return path, revision or None


# Layers


def _stack(
    config: Mapping[str, Any], document: Document, donors: list[Donor], findings: list[Finding]
) -> list[tuple[tuple[int, int], ...]]:
    """The sources of each layer of the result."""
    for name, module in as_dict(config.get("modules")).items():
        if "slices" in as_dict(module):
            place = document.place(("modules", name, "slices"))
            fix = "merge whole models, and stack their layers by the slots of a recipe"
            findings.append(Finding("slices inside of modules are not supported", fix, place))
    if slices := as_list(config.get("slices")):
        layers = [_slice(as_dict(s), i, document, donors, findings) for i, s in enumerate(slices)]
        return [layer for part in layers for layer in part]
    depths = {donor.depth for donor in donors}
    if len(depths) > 1:
        findings.append(
            Finding(
                "donors of different depth: " + ", ".join(f"{d.name} {d.depth}" for d in donors),
                fix="choose layers with slices, or stack them by the slots of a recipe",
                place=document.place(("models",)),
            )
        )
    numbers = range(len(donors))
    return [tuple((donor, layer) for donor in numbers) for layer in range(min(depths))]


def _slice(
    entry: Mapping[str, Any],
    i: int,
    document: Document,
    donors: list[Donor],
    findings: list[Finding],
) -> list[tuple[tuple[int, int], ...]]:
    columns = []
    for j, source in enumerate(as_list(entry.get("sources"))):
        place = document.place(("slices", i, "sources", j, "layer_range"))
        number = _number(as_dict(source).get("model"))
        layers = _layers(as_dict(source).get("layer_range"), donors[number], place, findings)
        columns.append([(number, layer) for layer in layers])
    if not columns or len({len(column) for column in columns}) > 1:
        counts = ", ".join(str(len(column)) for column in columns) or "no source"
        findings.append(
            Finding(
                f"the sources of a slice need one number of layers each, here {counts}",
                place=document.place(("slices", i, "sources")),
            )
        )
        return []
    return list(zip(*columns, strict=True))


def _number(reference: Any) -> int:
    return int(reference["model"]["path"].removeprefix("donors/")) if reference else 0


def _layers(value: Any, donor: Donor, place: str, findings: list[Finding]) -> range:
    pair = value if isinstance(value, list) and len(value) == 2 else []
    if [type(bound) for bound in pair] != [int, int]:
        findings.append(Finding("layer_range wants two numbers, [0, 4] is layers 0-3", place=place))
        return range(0)
    first, end = pair
    if not 0 <= first < end <= donor.depth:
        found = f"[{first}, {end}] is not a range of the {donor.depth} layers of '{donor.name}'"
        fix = f"mergekit's ranges leave out their end: [0, {donor.depth}] is all of them"
        findings.append(Finding(found, fix, place))
    return range(first, end)


# Donors that fit together


def _compare(
    config: Mapping[str, Any],
    document: Document,
    donors: list[Donor],
    stack: Iterable[tuple[tuple[int, int], ...]],
    findings: list[Finding],
) -> None:
    """mergekit stacks what has one name of class, whatever its widths."""
    place, base = str(document.path), donors[0]
    for donor in donors[1:]:
        if donor.model_type != base.model_type:
            found = f"donors of different architectures: '{base.name}' is {base.model_type}, "
            found += f"'{donor.name}' is {donor.model_type}"
        elif donor.anatomy.width != base.anatomy.width:
            found = f"donors of different width: '{base.name}' has {base.anatomy.width}, "
            found += f"'{donor.name}' has {donor.anatomy.width}"
        else:
            continue
        findings.append(Finding(found, "stack them by the slots of a recipe", place))
    tokenizer = config.get("tokenizer") or config.get("tokenizer_source")
    rows = {donor.name: donor.anatomy.vocabulary for donor in donors}
    if not findings and len(set(rows.values())) > 1 and not tokenizer:
        found = "vocabularies differ: " + ", ".join(f"'{n}' has {r} rows" for n, r in rows.items())
        fix = "add `tokenizer: {source: base}`, or choose donors of one tokenizer"
        findings.append(Finding(found, fix, place))
    for i, (first, *others) in enumerate(() if findings else stack):
        want = _shapes(donors[first[0]].anatomy.layers[first[1]].tensors)
        for number, layer in others:
            have = _shapes(donors[number].anatomy.layers[layer].tensors)
            if want != have:
                name = min(n for n in want | have if want.get(n) != have.get(n))
                found = f"layer {i} of the merge: '{name}' is {_shape(want.get(name))} in "
                found += f"layer {first[1]} of '{donors[first[0]].name}', "
                found += f"{_shape(have.get(name))} in layer {layer} of '{donors[number].name}'"
                findings.append(Finding(found, "merge layers of one kind only", place))
                return


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
