"""Bridges in closed form: the maps that turn the stream which arrives into the one that is wanted.

Bridges are fitted from below upwards, each on the stream that really reaches it: through the
hybrid's own slots and the bridges fitted so far (torch side).

Source: ridge regression between activations as in model stitching: Lenc and Vedaldi, "Understanding
image representations by measuring their equivariance and equivalence" (2015); Bansal et al.,
"Revisiting Model Stitching to Compare Neural Representations" (2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from hybridize.assembler.fit.hybrid_with_donors import (
    BATCH,
    HybridWithDonors,
    Parameters,
    Read,
    held_out_loss,
    whole,
)
from hybridize.assembler.plan.bridge_kind import bridge_kind
from hybridize.assembler.plan.stack import ENTER, GATE, LEAVE, Bridge
from hybridize.errors import HybridizeError
from hybridize.model.states import State
from hybridize.torch_model.regression import LAMBDAS, Affine, Sums, one_thread, procrustes, ridge
from hybridize.torch_model.windows import Windows, align, batches

ROUNDING = 1e-9  # share of the variance, by less than which sums cannot tell two maps apart


@dataclass(frozen=True)
class Fit:
    """How well a bridge was fitted.

    Attributes:
        init: what its values are: ridge, procrustes or identity.
        shrink: lambda of a ridge map, relative to the mean eigenvalue; None of others.
        tokens, held_out: number of pairs of states that it was fitted on, and judged by.
        aligned: share of the arriving positions that have a counterpart.
        r2: domain -> share of the wanted stream's variance explained, on held-out text.
        rms_ratio: length of what leaves the bridge over that of what is wanted.
    """

    where: str
    init: str
    shrink: float | None
    tokens: int
    held_out: int
    aligned: float
    r2: dict[str, float]
    rms_ratio: float

    @property
    def weak(self) -> list[str]:
        """Domains below the gate."""
        return [domain for domain, value in self.r2.items() if not value >= GATE]


@dataclass(frozen=True)
class Null:
    """A span of the hybrid, bridges and all, replaced by its own ridge map.

    Attributes:
        bridge: the one that it begins with.
        first: slot that it takes the place of.
        last: slot that reads what it gives; the bridge before that slot is part of the span.
    """

    bridge: Bridge
    first: int
    last: int
    affine: Affine

    @property
    def span(self) -> str:
        """The slots that it stands for, in words."""
        one = self.last - self.first == 1
        return f"slot {self.first}" if one else f"slots {self.first}-{self.last - 1}"


@dataclass(frozen=True)
class Fitted:
    """All that fitting a hybrid's bridges gives; the hybrid itself has the bridges by then."""

    parameters: dict[str, Parameters] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    nulls: list[Null] = field(default_factory=list)


@torch.no_grad()
def fit_bridges(
    models: HybridWithDonors,
    windows: Sequence[Windows],
    *,
    stream: str,
    progress: Read,
    nulls: bool = True,
) -> Fitted:
    """Fit the bridges of a hybrid, from below upwards.

    Args:
        stream: what a bridge is fitted on: `hybrid`, what really arrives; or `donor`, what the
            donor below would give if it stood alone.
        nulls: whether a map is fitted for each span, too, to measure beside the hybrid.
    """
    work = _Work(models, windows, stream, progress, nulls=nulls)
    for bridge in models.bridges:
        if bridge.fitted:
            work.fit(bridge)
            if bridge.where.endswith(f".{LEAVE}"):
                work.settle(bridge)
    return work.fitted


def share_of_pass(models: HybridWithDonors, bridge: Bridge, stream: str, *, nulls: bool) -> float:
    """What a pass of text through both sides of a bridge is, beside one through the hybrid."""
    depth = len(models.hybrid.config.slots)
    arriving = bridge.reads[1] if stream == "donor" else bridge.at or State(depth)
    deepest: dict[str, int] = {}
    for donor, state in _goals(models, bridge, nulls=nulls):
        deepest[donor] = max(deepest.get(donor, 0), state.slot)
    return (arriving.slot + sum(deepest.values())) / depth


class _Work:
    """The fits of one hybrid, as far as they are done."""

    def __init__(
        self,
        models: HybridWithDonors,
        windows: Sequence[Windows],
        stream: str,
        progress: Read,
        *,
        nulls: bool,
    ) -> None:
        self.models, self.windows, self.nulls = models, windows, nulls
        self.stream, self.progress = stream, progress
        self.fitted = Fitted()

    def fit(self, bridge: Bridge) -> None:
        """Fit one bridge, and the null map of the span that it begins."""
        span = _span(self.models, bridge) if self.nulls else None
        sums = self._pass(bridge, _goals(self.models, bridge, nulls=self.nulls))
        with one_thread():
            affine, init, shrink = _solve(bridge, sums, self.windows)
            if span is not None:
                judges = [goals[1] for goals in sums.held_out]
                null, _ = best_map(ridge(sums.seen[1], bias=True), judges, self.windows)
                self.fitted.nulls.append(Null(bridge, span.first, span.last, null))
        self._keep(bridge, sums, affine, init, shrink)

    def settle(self, leave: Bridge) -> None:
        """Around a swapped module of equal width, `auto` takes both maps or neither.

        By the hybrid's loss on held-out text: how well each map was fitted says little about what
        the module between them is worth (in the lowest layers of small donors, nothing).
        """
        enter = next(b for b in self.models.bridges if b.where == _other_side(leave))
        pair = (enter, leave)
        plain = all(b.init == "auto" and b.width_in == b.width_out for b in pair)
        if not plain or all(self.fitted.fits[b.where].init == "identity" for b in pair):
            return
        fitted = {bridge.where: self.fitted.parameters[bridge.where] for bridge in pair}
        with_maps = self._loss()
        device = self.models.reader.device
        for bridge in pair:
            self.models.set(bridge, _parameters(bridge, _identity(bridge, device)))
        if with_maps < self._loss():
            for bridge in pair:
                self.models.set(bridge, fitted[bridge.where])
            return
        for bridge in pair:
            sums = self._pass(bridge, [bridge.writes])
            self._keep(bridge, sums, _identity(bridge, device), "identity", None)

    def _loss(self) -> float:
        """The hybrid's loss as it is, over the domains by their share of the text."""
        models, nats = self.models, whole(self.models.hybrid)
        losses = (held_out_loss(part, models.reader, nats, self.progress) for part in self.windows)
        shares = (part.domain.tokens for part in self.windows)
        return sum(
            float(loss["per_byte"]) * share for loss, share in zip(losses, shares, strict=True)
        )

    def _keep(
        self,
        bridge: Bridge,
        sums: _PassSums,
        affine: Affine,
        init: str,
        shrink: float | None,
    ) -> None:
        judges = [goals[0] for goals in sums.held_out]
        names = [part.domain.name for part in self.windows]
        values = _parameters(bridge, affine)
        self.models.set(bridge, values)
        self.fitted.parameters[bridge.where] = values
        self.fitted.fits[bridge.where] = Fit(
            where=bridge.where,
            init=init,
            shrink=shrink,
            tokens=sums.seen[0].n,
            held_out=sum(judge.n for judge in judges),
            aligned=sums.aligned,
            r2={name: j.r2(affine) for name, j in zip(names, judges, strict=True)},
            rms_ratio=sum(judges[1:], judges[0]).rms_ratio(affine),
        )

    def _pass(self, bridge: Bridge, goals: Sequence[tuple[str, State]]) -> _PassSums:
        """Run all text through both sides of a bridge, one batch at a time."""
        models = self.models

        def sums() -> list[Sums]:
            widths = [models.width(donor) for donor, _ in goals]
            return [Sums(bridge.width_in, width, models.reader.device) for width in widths]

        found = _PassSums(sums(), [sums() for _ in self.windows])
        norm = getattr(models.module(bridge), "norm", None)
        share = share_of_pass(models, bridge, self.stream, nulls=len(goals) > 1)
        for part, judges in zip(self.windows, found.held_out, strict=True):
            for texts, totals in ((part.fit, found.seen), (part.held_out, judges)):
                for some in batches(texts, part.rows(BATCH)):
                    arrived, x = models.arriving(bridge, some, self.stream)
                    x = x if norm is None else norm(x)
                    for total, (read, y) in zip(totals, models.wanted(goals, some), strict=True):
                        here, there = align(arrived, read)
                        total.add(x[here], y[there])
                    found.positions += sum(map(len, arrived.ends))
                    self.progress(arrived.tokens.numel() * share)
        _refuse_infinite(bridge, found.seen, goals)
        return found


@dataclass
class _PassSums:
    """Sums of one pass over the text, for each goal: of what is seen, of each domain held out."""

    seen: list[Sums]
    held_out: list[list[Sums]]
    positions: int = 0

    @property
    def aligned(self) -> float:
        """Share of the arriving positions that had a counterpart in the first goal."""
        return (self.seen[0].n + sum(sums[0].n for sums in self.held_out)) / self.positions


def _refuse_infinite(
    bridge: Bridge, sums: Sequence[Sums], goals: Sequence[tuple[str, State]]
) -> None:
    for total, (donor, _) in zip(sums, goals, strict=True):
        if not bool(total.yy.isfinite()):
            wrong = f"the states of donor '{donor}'"
        elif not bool(total.xx.isfinite().all()):
            wrong = "the hybrid's states"
        else:
            continue
        raise HybridizeError(
            f"{wrong} at the bridge {bridge.in_words()} are not finite numbers",
            fix="does each donor alone give finite logits in this dtype?",
        )


def _other_side(leave: Bridge) -> str:
    return leave.where.removesuffix(LEAVE) + ENTER


def _parameters(bridge: Bridge, affine: Affine) -> Parameters:
    with one_thread():
        found: Parameters = bridge_kind(bridge.kind).parameters(bridge, affine)
    return found


def _identity(bridge: Bridge, device: torch.device | str) -> Affine:
    eye = torch.eye(bridge.width_out, bridge.width_in, dtype=torch.float64, device=device)
    return Affine(eye, eye.new_zeros(bridge.width_out))


@dataclass(frozen=True)
class _Span:
    """What stands behind a bridge, up to where the next one leads."""

    first: int
    last: int
    wanted: tuple[str, State]


def _goals(models: HybridWithDonors, bridge: Bridge, *, nulls: bool) -> list[tuple[str, State]]:
    """What a bridge's own map is fitted to, and that in the place of the span that it begins."""
    span = _span(models, bridge) if nulls else None
    return [bridge.writes, *([span.wanted] if span else [])]


def _span(models: HybridWithDonors, bridge: Bridge) -> _Span | None:
    """Of a bridge between slots; the last one's ends before the final norm."""
    if bridge.at is None or bridge.at.module is not None:
        return None
    following = [
        b for b in models.bridges if b.at and not b.at.module and b.at.slot > bridge.at.slot
    ]
    if following:
        at = following[0].at
        assert at is not None
        return _Span(bridge.at.slot, at.slot, following[0].writes)
    config = models.hybrid.config
    end = (config.head, State(len(models.alone(config.head).model.layers)))
    return _Span(bridge.at.slot, len(config.slots), end)


def _solve(
    bridge: Bridge, sums: _PassSums, windows: Sequence[Windows]
) -> tuple[Affine, str, float | None]:
    """The map, what it is, and its lambda."""
    seen, judges = sums.seen[0], [total[0] for total in sums.held_out]
    if bridge.init == "procrustes":
        turned = procrustes(seen, bias=bridge.bias)
        return closest(bridge, turned, seen), "procrustes", None
    maps = (closest(bridge, affine, seen) for affine in ridge(seen, bias=bridge.bias))
    affine, index = best_map(maps, judges, windows)
    if bridge.init == "auto":
        eye = _identity(bridge, seen.xx.device)
        eye = Affine(closest(bridge, eye, seen).weight, eye.bias)
        gain = _loss(eye, judges, windows) - _loss(affine, judges, windows)
        if gain <= ROUNDING * sum(part.domain.tokens for part in windows):
            return eye, "identity", None
    return affine, "ridge", LAMBDAS[index]


def closest(bridge: Bridge, affine: Affine, seen: Sums) -> Affine:
    """The map of a bridge's kind that comes closest to another over the tokens that were seen."""
    moment, _ = seen.covariances(bias=bridge.bias)
    found = bridge_kind(bridge.kind).closest(bridge, affine, moment)
    # A map of lower rank carries the mean elsewhere, and wants a bias of its own.
    return seen.affine(found.weight, bias=bridge.bias)


def best_map(
    maps: Iterable[Affine], judges: Sequence[Sums], windows: Sequence[Windows]
) -> tuple[Affine, int]:
    """The map with the least error on held-out text, and which of them it is."""
    return min(
        ((affine, index) for index, affine in enumerate(maps)),
        key=lambda pair: _loss(pair[0], judges, windows),
    )


def _loss(affine: Affine, judges: Sequence[Sums], windows: Sequence[Windows]) -> float:
    """Share of the variance not explained, over the domains by their share of the text."""
    parts = zip(judges, windows, strict=True)
    return sum((1 - judge.r2(affine)) * part.domain.tokens for judge, part in parts)
