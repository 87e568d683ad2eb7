"""Models to traces: text and probes are read once, then each model is swept (torch side)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from hybridize.assembler.calibration import gather, plan_calibration
from hybridize.assembler.windows import Domain, Reader, Windows, cut
from hybridize.diagnostics import measures, scoring
from hybridize.diagnostics.items import ItemSet, chance, find_items
from hybridize.diagnostics.sheets import LENS_TOKENS, Points, lens_sheets, task_sheets, text_sheets
from hybridize.diagnostics.subjects import Subject, check_tokenizers
from hybridize.diagnostics.sweep import Swept, layer_tokens, sweep
from hybridize.diagnostics.trace import Loss, Perturbation, Set, Settings, Trace
from hybridize.diagnostics.variants import all_variants
from hybridize.errors import CheckFailed, Finding, HybridizeError
from hybridize.plugins import load_plugin, plugin_names
from hybridize.recipe import RecipeFile
from hybridize.recipe_sections import DiagnosticsSpec

HELD_OUT = 0.5  # of the text: perturbed and scored; lenses are fitted to the rest

Progress = Callable[[int, int], None]  # layer-tokens done, and in all


@dataclass(frozen=True)
class Material:
    """What all models are asked.

    Attributes:
        windows: stretches of text of each domain; those held out are scored.
        noted: of each domain: source and hash.
    """

    windows: list[Windows]
    noted: list[dict[str, Any]]
    probes: list[ItemSet]


def diagnose(
    recipe: RecipeFile,
    subjects: Sequence[Subject],
    *,
    device: str,
    streamed: bool,
    memory: int,
    offline: bool,
    progress: Progress,
) -> list[Trace]:
    """Diagnose models, all on the same text and the same probes.

    Args:
        recipe: its `diagnostics` say how, its `calibration` on which text.
        streamed: read layers from disk one by one.
        memory: bytes that the states of perturbed rows may take.

    Raises:
        HybridizeError: text or probes cannot be read.
        CheckFailed: a model gives what is no number.
    """
    check_tokenizers(subjects)
    readers = [subject.reader() for subject in subjects]
    material = gather_material(recipe, subjects, readers[0], offline=offline)
    return diagnose_on(
        material,
        subjects,
        readers,
        spec=recipe.recipe.diagnostics,
        device=device,
        streamed=streamed,
        memory=memory,
        progress=progress,
    )


def diagnose_on(
    material: Material,
    subjects: Sequence[Subject],
    readers: Sequence[Reader],
    *,
    spec: DiagnosticsSpec,
    device: str,
    streamed: bool,
    memory: int,
    progress: Progress,
) -> list[Trace]:
    """`diagnose` on text and probes that are gathered already."""
    works = [
        _Diagnosis(subject, reader, material, spec)
        for subject, reader in zip(subjects, readers, strict=True)
    ]
    total, before, traces = sum(work.layer_tokens for work in works), 0, []
    for work in works:

        def tell(done: int, _: int, before: int = before) -> None:
            progress(before + done, total)

        parts = work.subject.open(device, streamed=streamed)
        try:
            swept = sweep(
                parts, work.sheets, work.points, work.variants, memory=memory, progress=tell
            )
        except CheckFailed as error:
            raise _named(error, work.subject) from None
        before += work.layer_tokens
        traces.append(work.trace(swept, device))
    return traces


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
        domains = [Domain(d.name, share, d.place) for d, share in planned.shares(spec.tokens)]
        windows = cut(file, domains, reader, length=length, held_out=HELD_OUT, seed=planned.seed)
    return Material(windows, noted["domains"], probes)


class _Diagnosis:
    """One model's way from material to trace."""

    def __init__(
        self, subject: Subject, reader: Reader, material: Material, spec: DiagnosticsSpec
    ) -> None:
        self.subject, self.material, self.spec = subject, material, spec
        kinds = [(p.kind, p.strength) for p in spec.perturbations]
        self.variants = all_variants(kinds, parts=spec.parts, seeds=spec.seeds)
        self.slots = subject.as_slots()
        self.points: list[Points] = []
        self.sheets = lens_sheets(reader, material.windows)
        for part in material.windows:
            points, sheets = text_sheets(reader, part, len(self.points))
            self.points.append(points)
            self.sheets += sheets
        self.readable: list[list[int]] = []
        for items in material.probes:
            points, sheets, readable = task_sheets(
                reader, items, len(self.points), perturbed=spec.perturb == "all"
            )
            self.points.append(points)
            self.sheets += sheets
            self.readable.append(readable)

    @property
    def layer_tokens(self) -> int:
        """That a sweep in one group runs, if every layer has every part."""
        return layer_tokens(len(self.slots), self.sheets, self.variants)

    def trace(self, swept: Swept, device: str) -> Trace:
        slots, sets = self.slots, self._sets(swept)
        curves = scoring.curves_of(self.points, swept, self.variants)
        again = sum(sheet.tokens.numel() for sheet in self.sheets if sheet.perturbed)
        once = sum(sheet.tokens.numel() for sheet in self.sheets)
        return Trace(
            model=self.subject.as_model(),
            slots=slots,
            settings=self._settings(device),
            sets=sets,
            curves=curves,
            flow=scoring.flow_of(swept),
            lens_r2=scoring.listed(swept.lens_r2),
            losses=self._losses(swept),
            boundary=scoring.boundary_of(curves[0], sets),
            layer_tokens=swept.layer_tokens,
            naive_layer_tokens=len(slots) * (once + again * len(slots) * len(self.variants)),
        )

    def _settings(self, device: str) -> Settings:
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
            parts=list(spec.parts),
            tokens=spec.tokens,
            length=spec.length,
            seed=0,
            perturb=spec.perturb,
            resamples=measures.RESAMPLES,
            level=measures.LEVEL,
            share=measures.SHARE,
            lens_tokens=LENS_TOKENS,
            device=device,
        )

    def _sets(self, swept: Swept) -> list[Set]:
        found = []
        texts = len(self.material.windows)
        for i, (points, read) in enumerate(zip(self.points, swept.read, strict=True)):
            if i < texts:
                noted = self.material.noted[i]
                found.append(
                    scoring.set_of(
                        points,
                        read,
                        title="what comes next in text",
                        source=noted["source"],
                        blake3=noted["blake3"],
                        items=len(points),
                        chance=_commonest(points),
                    )
                )
                continue
            items, readable = self.material.probes[i - texts], self.readable[i - texts]
            found.append(
                scoring.set_of(
                    points,
                    read,
                    title=items.title,
                    source=items.source,
                    blake3=_hash(items),
                    items=len(items.items),
                    chance=chance([items.items[j] for j in readable]) if readable else None,
                )
            )
        return found

    def _losses(self, swept: Swept) -> dict[str, Loss]:
        found = {}
        for part in self.material.windows:
            rows = swept.nats[part.domain.name]
            found[part.domain.name] = scoring.loss_of(rows, num_bytes=part.held_out_bytes)
        return found


def _commonest(points: Points) -> float:
    return float(torch.bincount(points.targets).max()) / len(points)


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
