"""Recipe to plan: everything that a build will do, from configs and headers alone.

Whatever a user can get wrong is found here, before the first weight is read. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hybridize.architectures import native
from hybridize.architectures.families import family
from hybridize.architectures.refused import needs_own_embedding
from hybridize.assembler.plan.bridge_places import add_bridges
from hybridize.assembler.plan.resolving import resolve_donor
from hybridize.assembler.plan.stack import Bridge, Slot, make_slots
from hybridize.errors import Finding, HybridizeError
from hybridize.model.anatomy import Layer, left_out_in_words
from hybridize.model.checkpoint import TensorHeader
from hybridize.model.donors import Donor
from hybridize.model.heads import matrices, without_head
from hybridize.model.lineage import Lineage, Lineages
from hybridize.model.soundness import tokens_beyond
from hybridize.model.special_tokens import contradictions
from hybridize.model.tokenizer_files import tokenizer_code
from hybridize.model.vocabulary import choose_tokenizer, refuse_other_tokens, uncompared
from hybridize.recipe.file import RecipeFile
from hybridize.text.calibration import Calibration, plan_calibration

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # recipe: safetensors
FLOATS = ("F32", "F16", "BF16")
TO_BE_PROVED = "to be proved by build"
TO_BE_COMPARED = "to be compared by build"
TOKENS, HELD_OUT = 65_536, 0.2  # of calibration text, at least; share of it that fits are judged by


@dataclass(frozen=True)
class Plan:
    """What a build will do. Slots are counted from 0, from the embedding upwards."""

    recipe: RecipeFile
    donors: dict[str, Donor]  # those in use, in the order of the recipe
    slots: tuple[Slot, ...]
    bridges: dict[str, Bridge]  # by their place, from below upwards
    lineages: tuple[Lineage, ...]  # pairs of donors that were compared
    calibration: Calibration | None  # None: nothing is fitted, and nothing measured
    embeddings: str
    head: str
    tokenizer: Donor | None  # None: that donor has no tokenizer files
    target: Literal["native", "hybrid"]
    reason: str  # why this target
    dtype: str | None  # what floats become, as safetensors writes it; None: each stays as it is
    dtype_reason: str
    tied: bool
    uncompared: tuple[Donor, ...] = ()  # whose tokens build compares with those of the embeddings
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def picks(self) -> list[tuple[str, int]]:
        """(donor, layer) of each slot."""
        return [(slot.donor, slot.layer) for slot in self.slots]

    @property
    def bounded_by(self) -> str | None:
        """The donor with the shortest table of positions: beyond it the model cannot read."""
        bound = [n for n, d in self.donors.items() if family(d.model_type).fixed_positions]
        return min(bound, key=lambda n: self.donors[n].positions or math.inf, default=None)

    @property
    def positions(self) -> int | None:
        """Tokens that the result can read at a time, where a donor's table bounds them."""
        if self.bounded_by is None:
            return None
        return min((n for d in self.donors.values() if (n := d.positions)), default=None)

    @property
    def main_dtype(self) -> str:
        """What most of the result is, as safetensors writes it."""
        return self.dtype or self.donors[self.embeddings].anatomy.dtype

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """The donors' configs, without where somebody once loaded them from."""
        configs = {name: donor.config for name, donor in self.donors.items()}
        return {
            name: {key: value for key, value in config.items() if key != "_name_or_path"}
            for name, config in configs.items()
        }

    @property
    def head_tensors(self) -> tuple[TensorHeader, ...]:
        """Tensors of the output head; a tied donor's is its embedding."""
        anatomy = self.donors[self.head].anatomy
        return anatomy.head if matrices(anatomy) else (anatomy.embedding, *anatomy.head)

    @property
    def fitted(self) -> list[Bridge]:
        """Bridges whose values come from calibration text, from below upwards."""
        return [bridge for bridge in self.bridges.values() if bridge.fitted]

    @property
    def tokens_needed(self) -> int:
        """Tokens of calibration text, held-out ones included, that the widest fit should have."""
        most = max((bridge.tokens_needed for bridge in self.fitted), default=0)
        return math.ceil(most / (1 - HELD_OUT))

    @property
    def calibration_tokens(self) -> int:
        """Tokens of calibration text that are read, over all domains."""
        assert self.calibration is not None
        return self.calibration.tokens or max(TOKENS, self.tokens_needed)

    @property
    def measured_tokens(self) -> int:
        """Tokens of held-out text that losses are measured on, about; 0: they are not."""
        assert self.calibration is not None
        held_out, most = round(HELD_OUT * self.calibration_tokens), self.calibration.measure
        return held_out if most is True else min(held_out, int(most))

    @property
    def tokenizers(self) -> dict[str, Donor | None]:
        """Whose tokenizer each donor reads text with: its own, or the recipe's for one without."""
        return {
            name: donor if donor.tokenizer_files else self._same_rows(donor)
            for name, donor in self.donors.items()
        }

    def _same_rows(self, donor: Donor) -> Donor | None:
        other = self.tokenizer
        same = other is not None and other.anatomy.vocabulary == donor.anatomy.vocabulary
        return other if same else None

    def layer(self, slot: Slot) -> Layer:
        return self.donors[slot.donor].anatomy.layers[slot.layer]

    def slot_tensors(self, slot: Slot) -> list[TensorHeader]:
        """Tensors on disk that fill a slot."""
        swapped = {swap.path for swap in slot.swaps}
        own = self.layer(slot).tensors.items()
        found = [tensor for name, tensor in own if name.split(".")[0] not in swapped]
        for swap in slot.swaps:
            guest = self.donors[swap.donor].anatomy.layers[swap.layer]
            found += guest.module(swap.module).values()
        return found

    def dtype_of(self, dtype: str, donor: str, *, keep_fp32: bool = False) -> str:
        """What a donor's tensor becomes.

        A cast to a narrower dtype changes only what is stored in the donor's main dtype: what a
        checkpoint stores apart from that (A_log in fp32 amid bf16), it stores so for a reason.
        """
        if self.dtype is None or dtype not in FLOATS:
            return dtype
        if self.dtype == "F32":
            return "F32"
        main = self.donors[donor].anatomy.dtype
        return dtype if keep_fp32 or dtype != main else self.dtype

    def as_proved(self) -> Plan:
        """The same plan after the native target was proved."""
        return replace(self, reason=self.reason.replace(TO_BE_PROVED, "proved"))

    def as_hybrid(self, reason: str) -> Plan:
        """The same plan for the hybrid target, after the native one was refuted."""
        return replace(self, target="hybrid", reason=reason)


def make_plan(recipe: RecipeFile, *, offline: bool = False, weights: bool = True) -> Plan:
    """Resolve the donors of a recipe and decide all that a build needs.

    Args:
        offline: never ask the network.
        weights: False to look at a plan only: of a model of the hub that is not on this machine,
            the headers are fetched and not the weights.

    Raises:
        HybridizeError: all that is wrong with the donors; if they are sound, all that is wrong
            with what the recipe asks of them.
    """
    spec = recipe.recipe
    if not spec.slots:
        raise HybridizeError(
            "the recipe has no slots yet",
            fix="hybridize recommend RECIPE --write FILE writes a recipe with slots",
            place=recipe.place("placement"),
        )
    embeddings = spec.embeddings or spec.slots[0].donor
    head = spec.head or spec.slots[-1].donor
    used = _used(recipe) | {embeddings, head}
    resolved = _resolve(recipe, used, offline=offline, weights=weights)
    donors = {name: donor for name, donor in resolved.items() if name in used}
    findings: list[Finding] = []
    slots = make_slots(recipe, donors, findings)
    if findings:  # nothing further can be said about a stack that is not there
        raise HybridizeError.of(findings)
    lineages = Lineages(donors)
    slots, bridges = add_bridges(
        recipe,
        donors,
        slots,
        embeddings=embeddings,
        head=head,
        lineage=lineages.related,
        findings=findings,
    )
    _refuse_guests(recipe, donors, embeddings, findings)
    tied = _tied(recipe, donors[embeddings], donors[head], findings)
    tokenizer = choose_tokenizer(recipe, resolved, donors[embeddings], findings)
    dtype, dtype_reason = _dtype(recipe, donors)
    target, reason = _target(recipe, donors, slots, bridges, findings)
    text = recipe.recipe.calibration
    measured = text is not None and bool(text.measure)
    needs_text = measured or any(bridge.fitted for bridge in bridges.values())
    calibration = plan_calibration(recipe, findings) if needs_text else None
    if findings:
        raise HybridizeError.of(findings)
    plan = Plan(
        recipe=recipe,
        donors=donors,
        slots=tuple(slots),
        bridges=bridges,
        lineages=lineages.compared,
        calibration=calibration,
        embeddings=embeddings,
        head=head,
        tokenizer=tokenizer,
        target=target,
        reason=reason,
        dtype=dtype,
        dtype_reason=dtype_reason,
        tied=tied,
        uncompared=uncompared(donors[embeddings], donors[head], tokenizer),
        notes=(
            *_notes(recipe, used, donors[embeddings], head, tokenizer),
            *_left_out(donors),
            *_headless(donors),
            *_unread(donors),
        ),
    )
    plan = replace(plan, notes=(*plan.notes, *_token_notes(plan), *_context_notes(plan)))
    if calibration is None:
        return plan
    _refuse_mute(plan)
    plan = replace(plan, calibration=_fit_length(plan, calibration))
    return replace(plan, notes=(*plan.notes, *_calibration_notes(plan)))


def _used(recipe: RecipeFile) -> set[str]:
    modules = [m for s in recipe.recipe.slots for m in (s.mixer, s.mlp) if m is not None]
    return {s.donor for s in recipe.recipe.slots} | {m.donor for m in modules}


def _resolve(
    recipe: RecipeFile, used: set[str], *, offline: bool, weights: bool
) -> dict[str, Donor]:
    """The donors in use and that of the tokenizer, in the recipe's order; all their mistakes."""
    wanted = used | ({recipe.recipe.tokenizer} if recipe.recipe.tokenizer else set())
    donors: dict[str, Donor] = {}
    findings: list[Finding] = []
    for name in recipe.recipe.donors:
        if name in wanted:
            try:
                donors[name] = resolve_donor(recipe, name, offline=offline, weights=weights)
            except HybridizeError as error:
                findings += error.findings
    if findings:
        raise HybridizeError.of(findings)
    return donors


def _refuse_guests(
    recipe: RecipeFile, donors: Mapping[str, Donor], embeddings: str, findings: list[Finding]
) -> None:
    """Donors whose layers stand only above their own embedding, and here stand elsewhere."""
    for i, spec in enumerate(recipe.recipe.slots):
        for part, module in (("from", spec), ("mixer", spec.mixer), ("mlp", spec.mlp)):
            name = module.donor if module is not None else embeddings
            reason = needs_own_embedding(donors[name].config)
            if reason and name != embeddings:
                findings.append(
                    Finding(
                        f"the layers of donor '{name}' cannot stand here: {reason}",
                        fix=f"write embeddings: {name}",
                        place=recipe.place("slots", i, part),
                    )
                )


def _tied(recipe: RecipeFile, embeddings: Donor, head: Donor, findings: list[Finding]) -> bool:
    """Whether embedding and head are one tensor: decided by what the donors hold."""
    if not head.has_head:
        place = recipe.place("head" if recipe.recipe.head else "slots")
        finding = without_head(head.name, place)
        findings.append(replace(finding, fix=f"name another donor under head, or {finding.fix}"))
    refuse_other_tokens(recipe, embeddings, head, findings)
    return embeddings.name == head.name and head.tied


def _refuse_mute(plan: Plan) -> None:
    """Donors that cannot read the calibration text."""
    mute = [name for name, reader in plan.tokenizers.items() if reader is None]
    fix = (
        "put its tokenizer files into its folder, or write init: random under bridges"
        if plan.recipe.recipe.calibration is None
        else "put its tokenizer files into its folder"
    )
    if mute:
        raise HybridizeError.of(
            Finding(
                f"donor '{name}' has no tokenizer files, and cannot read the text that bridges are "
                "fitted on",
                fix=fix,
                place=plan.recipe.place("donors", name),
            )
            for name in mute
        )


def _fit_length(plan: Plan, calibration: Calibration) -> Calibration:
    """Sequences no longer than every donor can read."""
    limits = {name: donor.positions or calibration.length for name, donor in plan.donors.items()}
    shortest = min(limits, key=lambda name: limits[name])
    if calibration.length <= limits[shortest]:
        return calibration
    spec = plan.recipe.recipe.calibration
    if spec is not None and "length" in spec.model_fields_set:
        raise HybridizeError(
            f"sequences of {calibration.length} tokens are longer than donor '{shortest}' reads: "
            f"{limits[shortest]}",
            fix=f"write length: {limits[shortest]}, or less",
            place=plan.recipe.place("calibration", "length"),
        )
    return replace(calibration, length=limits[shortest])


def _calibration_notes(plan: Plan) -> list[str]:
    assert plan.calibration is not None
    notes = []
    if plan.calibration.brought:
        notes.append(
            "bridges are fitted on the text of Python's standard library, since the recipe names "
            "none: name text of what the model is for (calibration: {data: [...]})"
        )
    if plan.calibration_tokens < plan.tokens_needed:
        notes.append(
            f"{plan.calibration_tokens} tokens of calibration text are few: the widest bridge "
            f"asks for {plan.tokens_needed}"
        )
    return notes


def _dtype(recipe: RecipeFile, donors: Mapping[str, Donor]) -> tuple[str | None, str]:
    """What floats become: the recipe's word, or the least that loses nothing."""
    asked = recipe.recipe.dtype
    found = {name: donor.anatomy.dtype for name, donor in donors.items()}
    if asked != "keep":
        wanted = DTYPES[asked]
        same = all(dtype == wanted for dtype in found.values())
        return (None, f"{asked}, as the donors are") if same else (wanted, f"{asked}, asked for")
    kinds = sorted(set(found.values()))
    names = {short: long for long, short in DTYPES.items()}
    if len(kinds) == 1:
        return None, f"{names.get(kinds[0], kinds[0])}, as the donors are"
    listed = ", ".join(f"{name} {names.get(dtype, dtype)}" for name, dtype in found.items())
    return "F32", f"float32, the least that loses nothing of {listed}; `dtype:` sets another"


def _target(
    recipe: RecipeFile,
    donors: Mapping[str, Donor],
    slots: list[Slot],
    bridges: Mapping[str, Bridge],
    findings: list[Finding],
) -> tuple[Literal["native", "hybrid"], str]:
    """Native where nothing visible speaks against it; the build proves it."""
    asked = recipe.recipe.target
    if asked == "hybrid":
        return "hybrid", "the recipe asks for it"
    obstacle = _obstacle(donors, slots, bridges)
    if obstacle is None:
        model_type = donors[slots[0].donor].model_type
        return "native", f"every slot is a layer of {model_type}; {TO_BE_PROVED}"
    if asked == "native":
        findings.append(
            Finding(
                f"this stack is not a native model: {obstacle}",
                fix="write target: auto (or hybrid)",
                place=recipe.place("target"),
            )
        )
    return "hybrid", obstacle


def _obstacle(
    donors: Mapping[str, Donor], slots: list[Slot], bridges: Mapping[str, Bridge]
) -> str | None:
    for bridge in bridges.values():
        if bridge.num_parameters:
            return f"a bridge stands {bridge.in_words()}"
    for i, slot in enumerate(slots):
        if slot.swaps:
            return f"slot {i} has the {slot.swaps[0].path} of another layer"
    return native.obstacle({name: donor.checkpoint.config for name, donor in donors.items()})


def _notes(
    recipe: RecipeFile, used: set[str], embeddings: Donor, head: str, tokenizer: Donor | None
) -> list[str]:
    name = embeddings.name
    known = used | ({tokenizer.name} if tokenizer else set())
    notes = [f"donor '{name}' is not used" for name in recipe.recipe.donors if name not in known]
    if tokenizer is None:
        notes.append(f"donor '{name}' has no tokenizer files: the result will have none")
    else:
        if tokenizer.name != name:
            notes.append(f"tokenizer of '{tokenizer.name}' over the embeddings of '{name}'")
        notes += contradictions(tokenizer, embeddings.anatomy.vocabulary)
        notes += _code_notes(tokenizer)
    if name != head:
        notes.append(f"embeddings of '{name}' and head of '{head}': kept untied")
    return notes


def _code_notes(donor: Donor) -> Iterator[str]:
    found, missing = tokenizer_code(donor.folder)
    whose = f"the tokenizer of '{donor.name}' has code of its own"
    if missing:
        yield f"{whose}, and {', '.join(missing)} is not there: the reference to it is left out"
    elif found:
        yield f"{whose}, copied and never run: {', '.join(file.name for file in found)}"


def _token_notes(plan: Plan) -> Iterator[str]:
    """Whose numbers for tokens the plan has not compared, and why."""
    embeddings = plan.donors[plan.embeddings]
    for donor in plan.uncompared:
        yield (
            f"tokens of '{embeddings.name}' and '{donor.name}': {TO_BE_COMPARED}, which "
            "opens both tokenizers, since not both have a tokenizer.json or vocab.json"
        )
    others = {plan.head: plan.donors[plan.head]}
    others |= {plan.tokenizer.name: plan.tokenizer} if plan.tokenizer else {}
    for name, donor in others.items():
        mute = [d.name for d in (embeddings, donor) if not d.tokenizer_files]
        if name != embeddings.name and mute:
            listed = " and ".join(f"'{n}'" for n in mute)
            yield (
                f"tokens of '{embeddings.name}' and '{name}' cannot be compared: no tokenizer "
                f"files in {listed}"
            )


def _context_notes(plan: Plan) -> Iterator[str]:
    """Why the result reads less at a time than one of its donors."""
    stated = {name: n for name, donor in plan.donors.items() if (n := donor.positions)}
    if plan.bounded_by in stated and len(set(stated.values())) > 1:
        listed = ", ".join(f"{name} {n:,}" for name, n in stated.items())
        yield (
            f"context length {plan.positions:,}, the least of its donors' ({listed}): "
            f"'{plan.bounded_by}' cannot read beyond its table of positions"
        )


def _left_out(donors: Mapping[str, Donor]) -> Iterator[str]:
    for name, donor in donors.items():
        if donor.anatomy.left_out:
            words = left_out_in_words(donor.anatomy)
            yield f"left out of donor '{name}', no part of its language model: {words}"


def _unread(donors: Mapping[str, Donor]) -> Iterator[str]:
    for name, donor in donors.items():
        rows = donor.anatomy.vocabulary
        for number, token in tokens_beyond(donor.folder, rows).items():
            yield (
                f"donor '{name}' cannot read its token {number} ({token}): its embedding has "
                f"{rows} rows"
            )


def _headless(donors: Mapping[str, Donor]) -> Iterator[str]:
    for name, donor in donors.items():
        if not donor.has_head:
            yield f"donor '{name}' has no output head: alone, it has no loss"
