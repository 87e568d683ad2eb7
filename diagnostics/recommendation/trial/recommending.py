"""Donors to a recommended recipe: diagnose, place, assemble the best few, compare (torch side)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from hybridize.assembler import GATE, Plan, make_plan
from hybridize.console import say, share_progress, token_progress
from hybridize.diagnostics.measure.budget import BUDGET, fewer, seeds_of
from hybridize.diagnostics.measure.diagnosis import Material, diagnose_on, gather_material
from hybridize.diagnostics.measure.variants import all_variants
from hybridize.diagnostics.recommendation.prior.candidates import (
    LINEAR,
    find_candidates,
    qualities,
    scores_of,
    worthless,
)
from hybridize.diagnostics.recommendation.prior.placement import (
    DRIFT,
    FLIPPED,
    Estimate,
    LayerRun,
    Placement,
    Rules,
    Scores,
    Spot,
    flipped,
    lead_error,
    place,
)
from hybridize.diagnostics.recommendation.prior.recipe_writing import recipe_yaml
from hybridize.diagnostics.recommendation.trial.assembling import Measured, Workshop
from hybridize.diagnostics.recommendation.trial.seams import Apart
from hybridize.diagnostics.subject.subjects import Subject, check_heads, check_tokenizers
from hybridize.diagnostics.subject.trace import Trace
from hybridize.errors import HybridizeError
from hybridize.files.yaml_source import parse_yaml
from hybridize.machine.precision import AUTO
from hybridize.model.donors import Donor
from hybridize.model.lineage import Lineages
from hybridize.recipe.file import RecipeFile, read_recipe
from hybridize.recipe.sections.calibration import CalibrationSpec
from hybridize.recipe.sections.diagnostics import DiagnosticsSpec, PerturbationSpec
from hybridize.recipe.sections.placement import PlacementSpec
from hybridize.text.comparison import Gap, Losses, mean_gap
from hybridize.torch_model.loading import Weights

CONSIDERED = 64  # placements whose scores are kept: a tie is looked for among them
PATIENCE = 4  # times as many placements as asked for are tried, while none is sound
SURE = 2.0  # standard errors by which a lead must exceed chance


@dataclass(frozen=True)
class Candidate:
    """A placement that was assembled and measured.

    Attributes:
        refused: why it cannot be built; it was not measured then.
    """

    label: str
    placement: Placement
    measured: Measured | None
    refused: str | None = None

    @property
    def sound(self) -> bool:
        return self.measured is not None and not self.measured.alarms

    def beside(self, other: Candidate) -> Gap:
        """How far its loss is from another's on the same text, mean over the domains."""
        return mean_gap(self.losses, other.losses)

    def behind(self, other: Candidate) -> float:
        """By how many nats per byte its loss is above another's."""
        return self.beside(other).value

    @property
    def summary(self) -> str:
        """In a line: what it loses, and what speaks against it."""
        if self.measured is None:
            return f"cannot be built: {self.refused}"
        loss = fmean(domain["per_byte"] for domain in self.losses.values())
        alarms = self.measured.alarms
        return f"{loss:.3f} nats per byte" + (f"; rejected: {'; '.join(alarms)}" if alarms else "")

    @property
    def losses(self) -> Losses:
        """Of the assembled stack on held-out text, by domain."""
        assert self.measured is not None
        found: Losses = self.measured.fit["losses"]["hybrid"]
        return found


@dataclass(frozen=True)
class Recommendation:
    """Placements by score, the best of them measured, and the controls.

    Attributes:
        ranked: by score, best first.
        candidates: the best few, and the flipped placement, assembled.
        tied: how many of the ranked ones the first does not lead for sure, itself included.
        lead, error: of the first over the second, and its standard error.
        worthless: layers that do measurably worse than a linear map in their place, in their own
            donors, and by how much.
    """

    rules: Rules
    scores: Scores
    traces: list[Trace]
    ranked: list[Placement]
    candidates: list[Candidate]
    tied: int
    lead: float
    error: float
    worthless: dict[Spot, Estimate]

    @property
    def chosen(self) -> Candidate | None:
        """What is recommended: the score's order, as far as what was measured does not refute it.

        None: no placement is sound, or the flipped one is better than the one that would be chosen.
        """
        first = self.first
        return None if first is None or (self.flip and first.beside(self.flip).worse) else first

    @property
    def sound(self) -> list[Candidate]:
        """Those that may be recommended, by score."""
        return sound_ones(self.candidates)

    @property
    def first(self) -> Candidate | None:
        """The first by score of those that are sound, and than which no other of them is better."""
        return unrefuted(self.candidates)

    @property
    def flip(self) -> Candidate | None:
        """The flipped placement, if it could be measured."""
        return next((c for c in self.candidates if c.label == FLIPPED and c.measured), None)


def sound_ones(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that may be recommended: no controls."""
    return [c for c in candidates if c.sound and c.label != FLIPPED]


def unrefuted(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first sound one of which no other has measurably less loss."""
    sound = sound_ones(candidates)
    return next((c for c in sound if not any(c.beside(other).worse for other in sound)), None)


def find_placements(
    recipe: RecipeFile,
    *,
    device: str,
    streamed: bool,
    memory: int | None,
    compute: str = AUTO,
    budget: float = BUDGET,
    offline: bool,
) -> Recommendation:
    """Say which layers of a recipe's donors belong where, by the prior, and what that is worth.

    Args:
        streamed: read the donors' layers one by one while they are diagnosed.
        compute: dtype that models compute in, or `auto`, see `precision.compute_dtype`.
        budget: seconds for the diagnosis of donors, by which it is chosen how much of the text is
            perturbed, where recipe and options do not say.

    Raises:
        HybridizeError: donors or text cannot be read, or no stack obeys the rules.
    """
    rules, subjects = find_candidates(recipe, offline=offline)
    machine = _Machine(device, streamed, memory, compute, budget, offline)
    evidence = _gather_evidence(recipe, subjects, machine)
    scores = scores_of(evidence.traces, rules)
    with token_progress("placing layers, seam by seam", "slots") as progress:
        seams = evidence.apart.seam
        ranked = place(rules, scores, seams, count=CONSIDERED, progress=progress)
    if not ranked:
        raise _nothing(recipe, rules)
    check = _Check(recipe, evidence, machine)
    candidates = check.best_of(ranked)
    first = unrefuted(candidates)
    turned = flipped(first.placement if first else ranked[0], rules, qualities(evidence.traces))
    if turned and all(turned.runs != candidate.placement.runs for candidate in candidates):
        candidates.append(check.one(FLIPPED, turned))
    for donor in evidence.donors.values():
        donor.checkpoint.refuse_changed()
    tied, lead, error = _lead(ranked, rules, scores)
    return Recommendation(
        rules=rules,
        scores=scores,
        traces=evidence.traces,
        ranked=ranked,
        candidates=candidates,
        tied=tied,
        lead=lead,
        error=error,
        worthless=worthless(evidence.traces, rules),
    )


@dataclass(frozen=True)
class _Machine:
    """Where and how the work is done."""

    device: str
    streamed: bool
    memory: int | None
    compute: str
    budget: float
    offline: bool


@dataclass(frozen=True)
class _Evidence:
    """What was measured of the donors; `spec`: how much of it."""

    donors: dict[str, Donor]
    spec: DiagnosticsSpec
    material: Material
    traces: list[Trace]
    apart: Apart


def _gather_evidence(
    recipe: RecipeFile, subjects: Sequence[Subject], machine: _Machine
) -> _Evidence:
    """Diagnose every donor on the same text, and compare their streams."""
    check_heads(subjects)
    check_tokenizers(subjects)
    readers = [subject.reader() for subject in subjects]
    donors = {s.name: s.donor for s in subjects if s.donor is not None}
    spec = _spec(recipe, donors)
    asked = RecipeFile(recipe.recipe.model_copy(update={"diagnostics": spec}), recipe.document)
    material = gather_material(asked, subjects, readers[0], offline=machine.offline)
    said = {"tokens", "perturbed"} & recipe.recipe.diagnostics.model_fields_set
    with share_progress("diagnosing donors, layer by layer") as progress:
        traces = diagnose_on(
            material,
            subjects,
            readers,
            options=[spec] if said else fewer(spec),
            device=machine.device,
            streamed=machine.streamed,
            memory=machine.memory,
            compute=machine.compute,
            budget=machine.budget,
            progress=progress,
        )
    with token_progress("comparing streams") as progress:
        apart = Apart(
            {
                s.name: s.open(machine.device, streamed=machine.streamed, compute=machine.compute)
                for s in subjects
            },
            {s.name: r for s, r in zip(subjects, readers, strict=True)},
            material.windows,
            related=Lineages(donors).related,
            progress=progress,
        )
    settings = traces[0].settings
    seeds = max(perturbation.seeds for perturbation in settings.perturbations)
    settled = spec.model_copy(update={"perturbed": settings.perturbed, "seeds": seeds})
    return _Evidence(donors, settled, material, traces, apart)


def _spec(recipe: RecipeFile, donors: Mapping[str, Donor]) -> DiagnosticsSpec:
    """What is measured of donors: how stable their layers are, and what they are worth."""
    spec = recipe.recipe.diagnostics
    others = [p for p in spec.perturbations if p.kind != LINEAR]
    kinds = [*(others[:1] or [PerturbationSpec()]), PerturbationSpec(kind=LINEAR)]
    # Lenses want about as many tokens as the widest stream has dimensions: half of the text.
    tokens = max(spec.tokens, *(2 * donor.anatomy.width for donor in donors.values()))
    asked = {"perturbations": kinds, "parts": ["layer"], "probes": [], "tokens": tokens}
    return spec.model_copy(update=asked)


class _Check:
    """Assembles placements and measures them."""

    def __init__(self, recipe: RecipeFile, evidence: _Evidence, machine: _Machine) -> None:
        self.recipe, self.machine = recipe, machine
        spec = evidence.spec
        first = (spec.perturbations[0].kind, spec.perturbations[0].strength)
        self.shop = Workshop(
            Weights(evidence.donors, machine.device, compute=machine.compute),
            evidence.material,
            evidence.traces,
            variants=all_variants([first], parts=["layer"], seeds=seeds_of(spec)),
            perturbed=spec.perturbed,
            memory=machine.memory,
            offline=machine.offline,
        )

    def best_of(self, ranked: Sequence[Placement]) -> list[Candidate]:
        """The best few by score; more of them, if none of these is sound."""
        top = (self.recipe.recipe.placement or PlacementSpec()).top
        most = min(PATIENCE * top, len(ranked))
        found: list[Candidate] = []
        for i, placement in enumerate(ranked[:most], 1):
            if i > top and any(candidate.sound for candidate in found):
                break
            if i == top + 1:
                say(f"none of the best {top} is sound: the next are tried, up to the {most}th")
            found.append(self.one(str(i), placement))
        return found

    def one(self, label: str, placement: Placement) -> Candidate:
        """Assemble a placement; what cannot be built, or gives no numbers, is refused."""
        try:
            plan = _plan(self.recipe, placement.runs, offline=self.machine.offline)
            with token_progress(f"assembling {label}: {placement}") as progress:
                models, fit = self.shop.assemble(plan, progress)
            with share_progress(f"diagnosing {label}") as progress:
                measured = self.shop.diagnose(plan, models, fit, progress)
            found = Candidate(label, placement, measured)
        except HybridizeError as error:
            reason = "; ".join(finding.found for finding in error.findings)
            found = Candidate(label, placement, None, reason)
        say(f"placement {label}: {found.summary}")
        return found


def _plan(recipe: RecipeFile, runs: Sequence[LayerRun], *, offline: bool) -> Plan:
    """The plan of a stack, on calibration text in any case: it is to be measured."""
    spec = recipe.recipe
    whole = (spec.calibration or CalibrationSpec()).model_copy(update={"measure": True})
    measured = spec.model_copy(update={"calibration": whole})
    path = recipe.document.path
    text = recipe_yaml(RecipeFile(measured, recipe.document), runs, folder=path.parent)
    return make_plan(read_recipe(parse_yaml(text, path)), offline=offline)


def _lead(ranked: Sequence[Placement], rules: Rules, scores: Scores) -> tuple[int, float, float]:
    """How many share the first place, and the first one's lead over the second."""
    best, tied = ranked[0], 1
    for other in ranked[1:]:
        error = lead_error(best, other, rules, scores)
        if round(best.score - other.score, 12) > SURE * error:
            break
        tied += 1
    if len(ranked) == 1:
        return 1, float("inf"), 0.0
    lead = best.score - ranked[1].score
    return tied, lead, lead_error(best, ranked[1], rules, scores)


def _nothing(recipe: RecipeFile, rules: Rules) -> HybridizeError:
    donors = ", ".join(f"{name} ({depth} layers)" for name, depth in rules.layers.items())
    return HybridizeError(
        f"no stack of {rules.depth} slots obeys the rules: every one of {donors}, at least "
        f"{rules.at_least} slots each, begins with a first layer, ends with a last one, has at "
        f"most {rules.max_changes} changes of donor, at each of which the new run begins within "
        f"{DRIFT:.0%} of the depth at which the last one ended, and no bridge that explains less "
        f"than {GATE:.0%} of its stream",
        fix="change depth, at_least or max_bridges under placement, or name more candidates",
        place=recipe.place("placement") if recipe.recipe.placement else recipe.place("donors"),
    )
