"""What trials of bridges have found, as tables in markdown.

Every cell is the median over the seeds, with the figure of each seed behind it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bridge_stacks import INITS, OTHER_TOKENS, PAIRS, SEVERAL, STACKS, VOCABULARY, Stack, Trial

from hybridize.text.built_in import DOMAINS

BAR = 1.0  # nats per token that a ridge bridge is better than a random one, and than none

Fit = dict[str, Any]  # as a build gives it
Fits = Mapping[Trial, Fit]
UNITS = {"per_token": "per token", "per_byte": "per byte"}
LOSSES = [f"{domain}, {unit}" for domain in DOMAINS for unit in UNITS.values()]


def tables(fits: Fits, seeds: Sequence[int]) -> Iterator[str]:
    """One part for each question.

    Args:
        fits: of every trial of `bridge_stacks`, for each seed.
    """
    found = {stack: _Found(stack, fits, seeds) for stack in STACKS}
    yield "### How much better ridge is\n\nNats per token, in the domain where it is least."
    yield _better(found.values())
    yield _verdict([found[stack] for stack in PAIRS])
    yield "### Donors alone\n\nHeld-out loss in nats, per token of each one's own tokenizer."
    yield _table(["", *LOSSES], _donor_rows(found.values()))
    yield (
        "### Hybrids before any training\n\nHeld-out loss in nats. A matrix: the span of slots "
        "replaced by a ridge map, in the hybrid with ridge bridges."
    )
    yield _table(["stack", "bridges", *LOSSES], _rows(_losses, found, *PAIRS, *SEVERAL))
    yield "### What bridges are fitted to\n\nRidge, in stacks of more than one bridge."
    yield _table(["stack", "stream", *LOSSES], _rows(_streams, found, *SEVERAL))
    yield f"### Tokenizers that differ\n\nOne of {VOCABULARY} tokens, of code; llama's has 1024."
    yield _table(["stack", "bridges", *LOSSES], _rows(_losses, found, OTHER_TOKENS))
    yield "### The fits\n\nRidge on held-out text, and what auto chose."
    header = ["stack", "bridge", "auto", "aligned", *(f"R2 {d}" for d in DOMAINS)]
    yield _table([*header, "length", "lambda"], _rows(_fits, found, *STACKS))


def memory_table(peaks: Mapping[int, int]) -> str:
    """Peak memory in bytes by tokens of calibration text."""
    rows = [[f"{tokens:,}", f"{peak / 1e6:.0f}"] for tokens, peak in peaks.items()]
    return (
        f"### Memory\n\nOf the larger process of `hybridize build`, {PAIRS[0].name}.\n\n"
        + _table(["calibration tokens", "peak MB"], rows)
    )


class _Found:
    """What was found in one stack, over the seeds."""

    def __init__(self, stack: Stack, fits: Fits, seeds: Iterable[int]) -> None:
        self.stack, self._fits, self._seeds = stack, fits, seeds

    def fits(self, init: str = "ridge", stream: str = "hybrid") -> list[Fit]:
        """Of each seed."""
        return [self._fits[Trial(self.stack, seed, init, stream)] for seed in self._seeds]

    def better(self, init: str) -> list[float]:
        """By how much ridge is better than another init."""
        pairs = zip(self.fits(init), self.fits(), strict=True)
        return [_lead(other["losses"]["hybrid"], ridge) for other, ridge in pairs]

    def better_than_matrix(self) -> list[float]:
        """By how much the hybrid is better than with the most dispensable span replaced."""
        nulls = [(fit["losses"]["null"].values(), fit) for fit in self.fits()]
        return [min(_lead(null, fit) for null in spans) for spans, fit in nulls if spans]


def _lead(losses: Mapping[str, Any], fit: Fit) -> float:
    """Nats per token that a hybrid is better than other losses, where that is least."""
    hybrid = fit["losses"]["hybrid"]
    return min(float(losses[d]["per_token"] - hybrid[d]["per_token"]) for d in DOMAINS)


def _better(stacks: Iterable[_Found]) -> str:
    others = [init for init in INITS if init not in ("ridge", "auto")]
    rows = [
        [
            found.stack.name,
            *(_cell(found.better(init)) for init in others),
            _cell(found.better_than_matrix()),
        ]
        for found in stacks
    ]
    return _table(["stack", *(f"than {init}" for init in others), "than a matrix"], rows)


def _verdict(stacks: Iterable[_Found]) -> str:
    leads = [
        min(pair)
        for found in stacks
        for pair in zip(found.better("random"), found.better("identity"), strict=True)
    ]
    held = sum(lead >= BAR for lead in leads)
    return (
        f"{'held' if held == len(leads) else 'MISSED'}: one donor below another, ridge is better "
        f"than random and identity by {BAR:g} nat per token in {held} of {len(leads)} pairs and "
        f"seeds; least {min(leads):.2f}"
    )


def _rows(
    rows: Callable[[_Found], Iterator[list[str]]], found: Mapping[Stack, _Found], *stacks: Stack
) -> Iterator[list[str]]:
    """Rows of several stacks, each with the stack's name before it."""
    return ([stack.name, *row] for stack in stacks for row in rows(found[stack]))


def _donor_rows(stacks: Iterable[_Found]) -> Iterator[list[str]]:
    alone = {name: found for found in stacks for name in found.stack.donors}
    for name, found in alone.items():
        yield [name, *_loss_cells(fit["losses"]["donors"][name] for fit in found.fits())]
    unigram = (fit["losses"]["unigram"] for fit in alone["llama"].fits())
    yield ["unigram model, llama's tokens", *_loss_cells(unigram)]


def _losses(found: _Found) -> Iterator[list[str]]:
    for span in found.fits()[0]["losses"]["null"]:
        spans = (fit["losses"]["null"][span] for fit in found.fits())
        yield [f"*a matrix for {span}*", *_loss_cells(spans)]
    for init in INITS:
        yield [init, *_loss_cells(fit["losses"]["hybrid"] for fit in found.fits(init))]


def _streams(found: _Found) -> Iterator[list[str]]:
    for stream in ("hybrid", "donor"):
        fits = found.fits(stream=stream)
        yield [stream, *_loss_cells(fit["losses"]["hybrid"] for fit in fits)]


def _fits(found: _Found) -> Iterator[list[str]]:
    ridges = zip(*(fit["bridges"] for fit in found.fits()), strict=True)
    autos = zip(*(fit["bridges"] for fit in found.fits("auto")), strict=True)
    for ridge, auto in zip(ridges, autos, strict=True):
        yield [
            ridge[0]["place"],
            ", ".join(bridge["init"] for bridge in auto),
            _cell([bridge["aligned"] for bridge in ridge], 3),
            *(_cell([bridge["r2"][domain] for bridge in ridge]) for domain in DOMAINS),
            _cell([bridge["rms_ratio"] for bridge in ridge]),
            ", ".join(f"{bridge['shrink']:.0e}" for bridge in ridge),
        ]


def _loss_cells(losses: Iterable[Mapping[str, Any]]) -> list[str]:
    """Cells under LOSSES, from each seed's losses by domain."""
    each = list(losses)
    return [_cell([one[domain][unit] for one in each]) for domain in DOMAINS for unit in UNITS]


def _cell(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return "-"
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.median(values):.{digits}f} ({each})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
