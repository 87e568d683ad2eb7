"""Models to traces: text and probes are read once, then each model is swept (torch side)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from hybridize.console import Tell
from hybridize.diagnostics.measure import measures, scoring
from hybridize.diagnostics.measure.budget import (
    MORE,
    MOST,
    candidates,
    choices,
    overruns,
    seeds_of,
    tell_choice,
    timed,
)
from hybridize.diagnostics.measure.effort import Effort
from hybridize.diagnostics.measure.sheets import (
    LENS_TOKENS,
    Points,
    Sheet,
    lens_sheets,
    share_of,
    task_sheets,
    text_sheets,
)
from hybridize.diagnostics.measure.sweep import Swept, sweep
from hybridize.diagnostics.measure.variants import LAYER, PARTS, Variant, all_variants
from hybridize.diagnostics.subject.items import ItemSet, find_items
from hybridize.diagnostics.subject.subjects import Subject, check_heads, check_tokenizers
from hybridize.diagnostics.subject.trace import (
    Curve,
    Loss,
    Perturbation,
    Refined,
    Set,
    Settings,
    Trace,
)
from hybridize.errors import CheckFailed, Finding, HybridizeError
from hybridize.machine.device import free_share
from hybridize.machine.precision import AUTO
from hybridize.plugins import load_plugin, plugin_names
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.diagnostics import DiagnosticsSpec
from hybridize.text.calibration import gather, plan_calibration
from hybridize.torch_model.windows import DomainText, Reader, Windows, cut

HELD_OUT = 0.5  # of the text: perturbed and scored; lenses are fitted to the rest


@dataclass(frozen=True)
class Material:
    """What all models are asked.

    Attributes:
        windows: stretches of text of each domain; those held out are scored.
        length: of a stretch, in tokens of the first model; `seed`: of their choice.
        noted: of each domain: source and hash.
    """

    windows: list[Windows]
    length: int
    seed: int
    noted: list[dict[str, Any]]
    probes: list[ItemSet]


def diagnose_models(
    recipe: RecipeFile,
    subjects: Sequence[Subject],
    *,
    device: str,
    streamed: bool,
    memory: int | None,
    compute: str = AUTO,
    budget: float | None = None,
    offline: bool,
    progress: Tell,
) -> list[Trace]:
    """Diagnose models, all on the same text and the same probes.

    Args:
        recipe: its `diagnostics` say how, its `calibration` on which text.
        streamed: read layers from disk one by one.
        compute: dtype that models compute in, or `auto`, see `precision.compute_dtype`.
        memory: bytes that the states of perturbed rows may take; None: a quarter of what is free.
        budget: seconds that what the recipe leaves open is chosen by; None: nothing is timed.

    Raises:
        HybridizeError: text or probes cannot be read.
        CheckFailed: a model gives what is no number.
    """
    check_heads(subjects)
    check_tokenizers(subjects)
    readers = [subject.reader() for subject in subjects]
    material = gather_material(recipe, subjects, readers[0], offline=offline)
    return diagnose_on(
        material,
        subjects,
        readers,
        options=choices(recipe.recipe.diagnostics),
        device=device,
        streamed=streamed,
        memory=memory,
        compute=compute,
        budget=budget,
        progress=progress,
    )


def diagnose_on(
    material: Material,
    subjects: Sequence[Subject],
    readers: Sequence[Reader],
    *,
    options: Sequence[DiagnosticsSpec],
    device: str,
    streamed: bool,
    memory: int | None,
    compute: str = AUTO,
    budget: float | None = None,
    progress: Tell,
) -> list[Trace]:
    """`diagnose_models` on text and probes that are gathered already.

    Args:
        options: settings, the best first, of which the first that is within the budget is used.
    """
    pairs = list(zip(subjects, readers, strict=True))

    def prepared(settled: DiagnosticsSpec) -> list[_Diagnosis]:
        return [_Diagnosis(subject, reader, material, settled) for subject, reader in pairs]

    settled = _settled(options, prepared, budget, device, streamed=streamed, compute=compute)
    works = prepared(settled)
    # What a recipe or flags say is measured, however long it takes.
    limit = budget if len(options) > 1 else None
    total, before, traces = sum(work.amount for work in works), 0, []
    for work in works:

        def tell(done: int, whole: int, before: int = before, amount: int = work.amount) -> None:
            progress(before + amount * done // whole, total)

        share = limit and limit * work.amount / total
        traces.append(
            work.run(
                device,
                streamed=streamed,
                memory=memory,
                compute=compute,
                budget=share,
                progress=tell,
            )
        )
        before += work.amount
    return traces


def _settled(
    options: Sequence[DiagnosticsSpec],
    prepared: Callable[[DiagnosticsSpec], list[_Diagnosis]],
    budget: float | None,
    device: str,
    *,
    streamed: bool,
    compute: str,
) -> DiagnosticsSpec:
    """The settings that are used; where there is a budget, what they will take is told."""
    if budget is None:
        return options[0]
    first = prepared(options[0])
    rates = [
        timed(work.subject.open(device, streamed=streamed, compute=compute), work.sheets, device)
        for work in first
    ]
    for option in options:
        works = first if option is options[0] else prepared(option)
        took = sum(
            rate.seconds(partial(_total, work), work.effort)
            for rate, work in zip(rates, works, strict=True)
        )
        if took <= budget:
            break
    tell_choice(option, took, budget if len(options) > 1 else None)
    return option


def _total(work: _Diagnosis, effort: Effort) -> int:
    return work.swept_effort(effort) + work.refined_effort(effort)


def gather_material(
    recipe: RecipeFile, subjects: Sequence[Subject], reader: Reader, *, offline: bool
) -> Material:
    """Text and probes.

    Args:
        reader: counts the tokens of text.
    """
    spec = recipe.recipe.diagnostics
    findings: list[Finding] = []
    planned = plan_calibration(recipe, findings)
    probes = []
    for i, name in enumerate(plugin_names("probes") if spec.probes is None else spec.probes):
        try:
            probes.append(find_items(name, recipe.path(".")))
        except HybridizeError as error:
            place = recipe.place("diagnostics", "probes", i)
            findings += [replace(f, place=f.place or place) for f in error.findings]
    if findings:
        raise HybridizeError.of(findings)
    length = min([spec.length, *(s.positions for s in subjects if s.positions)])
    planned = replace(planned, tokens=spec.tokens, length=length)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.jsonl"
        noted = gather(planned, recipe, file, tokens=spec.tokens, offline=offline)
        domains = [DomainText(d.name, share, d.place) for d, share in planned.shares(spec.tokens)]
        windows = cut(file, domains, reader, length=length, held_out=HELD_OUT, seed=planned.seed)
    return Material(windows, length, planned.seed, noted["domains"], probes)


class _Diagnosis:
    """One model's way from material to trace.

    Args:
        spec: settled, see `budget.settle`.
    """

    def __init__(
        self, subject: Subject, reader: Reader, material: Material, spec: DiagnosticsSpec
    ) -> None:
        self.subject, self.material, self.spec = subject, material, spec
        self.reader = reader
        self.kinds = [(p.kind, p.strength) for p in spec.perturbations]
        self.variants = all_variants(self.kinds, parts=spec.parts or [LAYER], seeds=seeds_of(spec))
        self.slots = subject.as_slots()
        self.points: list[Points] = []
        # A map wants about as many tokens as the stream has dimensions.
        self.lens_tokens = max(LENS_TOKENS, *(slot.width for slot in self.slots))
        self.sheets = lens_sheets(reader, material.windows, num_tokens=self.lens_tokens)
        for part in material.windows:
            share = share_of(spec.perturbed, part, material.windows)
            points, sheets = text_sheets(reader, part, len(self.points), perturbed=share)
            self.points.append(points)
            self.sheets += sheets
        for items in material.probes:
            points, sheets = task_sheets(
                reader, items, len(self.points), perturbed=spec.perturb == "all"
            )
            self.points.append(points)
            self.sheets += sheets

    @property
    def effort(self) -> Effort:
        return Effort.of(
            [slot.parameters for slot in self.slots],
            width=max(slot.width for slot in self.slots),
            vocabulary=self.subject.vocabulary,
        )

    @property
    def amount(self) -> int:
        """Work of both sweeps."""
        return self.swept_effort(self.effort) + self.refined_effort(self.effort)

    def swept_effort(self, effort: Effort) -> int:
        """Of the sweep of all layers."""
        return effort.sweep([self.sheets], self.variants)

    def refined_effort(self, effort: Effort, slots: Sequence[int] | None = None) -> int:
        """Of measuring some layers again; None: as many as may be, spread over the depth."""
        if self.spec.parts is not None:
            return 0
        last = len(self.slots) - 1
        slots = [i * last // (MOST - 1) for i in range(MOST)] if slots is None else slots
        return effort.sweep([self._again(self._finer(slots))], self._finer(slots))

    def _finer(self, slots: Sequence[int]) -> list[Variant]:
        return all_variants(
            self.kinds, parts=PARTS, seeds=MORE * seeds_of(self.spec), layers=frozenset(slots)
        )

    def _again(self, variants: Sequence[Variant]) -> list[Sheet]:
        """What a second sweep reads: perturbed text, and that which maps are fitted to."""
        fits = any(variant.acts_on == "fit" for variant in variants)
        return [s for s in self.sheets if s.perturbed or (fits and s.points is None)]

    def run(
        self,
        device: str,
        *,
        streamed: bool,
        memory: int | None,
        compute: str,
        budget: float | None,
        progress: Tell,
    ) -> Trace:
        """Sweep the model, which goes from memory again before the next one comes.

        Args:
            budget: seconds; layers are not measured again where that would clearly exceed them.
        """
        started = time.monotonic()
        parts = self.subject.open(device, streamed=streamed, compute=compute)
        room, effort = memory or free_share(device), self.effort
        coarse, fine = self.swept_effort(effort), self.refined_effort(effort)

        def told(before: int, share: int) -> Tell:
            return lambda done, whole: progress(before + share * done // whole, coarse + fine)

        def swept(
            sheets: Sequence[Sheet], variants: Sequence[Variant], tell: Tell
        ) -> tuple[Swept, list[Curve]]:
            found = sweep(parts, sheets, self.points, variants, memory=room, progress=tell)
            return found, scoring.curves_of(self.points, found, variants)

        try:
            found, curves = swept(self.sheets, self.variants, told(0, coarse))
            slots = [] if self.spec.parts is not None else candidates(curves[0], MOST)
            took = time.monotonic() - started
            if slots and overruns(took, coarse, fine, budget):
                slots = []
            if slots:
                variants = self._finer(slots)
                _, finer = swept(self._again(variants), variants, told(coarse, fine))
                curves = scoring.refined(curves, finer)
        except CheckFailed as error:
            raise _named(error, self.subject) from None
        refined = Refined(slots=slots, seeds=MORE * seeds_of(self.spec)) if slots else None
        settings = self._settings(device, parts.compute_dtype, refined)
        return self.trace(found, curves, settings)

    def trace(self, swept: Swept, curves: list[Curve], settings: Settings) -> Trace:
        slots, sets = self.slots, self._sets(swept)
        again = sum(sheet.tokens.numel() for sheet in self.sheets if sheet.perturbed)
        once = sum(sheet.tokens.numel() for sheet in self.sheets)
        return Trace(
            model=self.subject.as_model(),
            slots=slots,
            settings=settings,
            sets=sets,
            curves=curves,
            flow=scoring.flow_of(swept),
            lens_r2=scoring.listed(swept.lens_r2),
            losses=self._losses(swept),
            boundary=scoring.boundary_of(curves[0], sets),
            layer_tokens=swept.layer_tokens,
            naive_layer_tokens=len(slots) * (once + again * swept.variants),
        )

    def _settings(self, device: str, computed: str, refined: Refined | None) -> Settings:
        spec = self.spec
        return Settings(
            perturbations=[
                Perturbation(
                    kind=kind,
                    strength=strength,
                    title=load_plugin("perturbations", kind).TITLE,
                    seeds=len({v.seed for v in self.variants if v.kind == kind}),
                )
                for kind, strength in dict.fromkeys((v.kind, v.strength) for v in self.variants)
            ],
            parts=list(spec.parts or ()) or list(PARTS if refined else (LAYER,)),
            tokens=spec.tokens,
            length=self.material.length,
            seed=self.material.seed,
            perturb=spec.perturb,
            resamples=measures.RESAMPLES,
            level=measures.LEVEL,
            share=measures.SHARE,
            lens_tokens=self.lens_tokens,
            device=device,
            compute_dtype=computed,
            start_token=self.reader.start_words,
            perturbed=spec.perturbed,
            refined=refined,
        )

    def _sets(self, swept: Swept) -> list[Set]:
        """The domains of text, then the probe sets, in the order of their points."""
        sources: list[tuple[str, Any, str, int | None]] = [
            ("what comes next in text", noted["source"], noted["blake3"], None)
            for noted in self.material.noted
        ]
        sources += [
            (items.title, items.source, _hash(items), len(items.items))
            for items in self.material.probes
        ]
        return [
            scoring.set_of(
                points,
                read,
                title=title,
                source=source,
                blake3=digest,
                items=len(points) if items is None else items,
                chance=_commonest(points),
            )
            for points, read, (title, source, digest, items) in zip(
                self.points, swept.read, sources, strict=True
            )
        ]

    def _losses(self, swept: Swept) -> dict[str, Loss]:
        found = {}
        for part in self.material.windows:
            rows = swept.nats[part.domain.name]
            num_bytes = self.reader.encode(part.held_out).num_bytes(part.held_out)
            found[part.domain.name] = scoring.loss_of(rows, num_bytes=num_bytes)
        return found


def _commonest(points: Points) -> float | None:
    """Share of the token that follows most often; None: there are no points."""
    return float(points.targets.bincount().max()) / len(points) if len(points) else None


def _hash(items: ItemSet) -> str:
    digest = blake3()
    for item in items.items:
        digest.update(f"{item.prompt}\0{item.answer}\0".encode())
    return digest.hexdigest()


def _named(error: CheckFailed, subject: Subject) -> CheckFailed:
    place = str(subject.checkpoint.folder)
    return CheckFailed.of(
        replace(f, found=f"'{subject.name}': {f.found}", place=place) for f in error.findings
    )
