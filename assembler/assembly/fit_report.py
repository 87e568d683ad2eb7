"""How bridges were fitted, and what the hybrid is worth beside its controls, for the eye."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.console import count
from hybridize.text.calibration import NOT_MEASURED
from hybridize.text.comparison import Losses, gaps

Fit = Mapping[str, Any]  # as `fitting.run` gives it
UNIGRAM = "unigram model"


def fit_table(fit: Fit) -> RenderableType:
    """Bridges, losses, and what follows from them in words."""
    parts: list[RenderableType] = [Text()]
    if fit["bridges"]:
        parts += [_bridges(fit), Text()]
    parts.append(Text(_how(fit)))
    parts += [Text(NOT_MEASURED)] if fit["losses"] is None else [_losses(fit), Text()]
    parts += [Text(line) for line in verdict(fit)]
    return Group(*parts)


def _how(fit: Fit) -> str:
    """What decides the numbers and does not stand in the recipe."""
    starts = fit["start_tokens"]["donors"]
    before = ", ".join(f"{name} {token}" for name, token in starts.items())
    return f"computed in {fit['compute_dtype']}; before text: {before}"


def loss_rows(fit: Fit) -> Iterator[tuple[str, Losses]]:
    """Every model that was measured, the hybrid last."""
    losses = fit["losses"]
    yield UNIGRAM, losses["unigram"]
    for donor, row in losses["donors"].items():
        yield f"{donor} alone", row
    yield from replaced_rows(fit)
    yield "this hybrid", losses["hybrid"]


def replaced_rows(fit: Fit) -> Iterator[tuple[str, Losses]]:
    """The hybrid with a part of it replaced by something trivial."""
    losses = fit["losses"]
    for span, row in losses["null"].items():
        yield f"a matrix for {span}", row
    for swap in losses["swaps"]:
        yield f"slot {swap['slot']} without its {swap['module']}", swap["removed"]
        yield f"a matrix for slot {swap['slot']}'s {swap['module']}", swap["matrix"]


def verdict(fit: Fit) -> list[str]:
    """What a user should know before anything else is done with the model."""
    return [*_weak(fit), *(f"{name}: {words}" for name, words in beside_controls(fit).items())]


def _weak(fit: Fit) -> Iterator[str]:
    for bridge in fit["bridges"]:
        if bridge["weak"]:
            yield (
                f"warning: the bridge {bridge['place']} explains less than {fit['gate']:.0%} of "
                f"the stream that it should give, on {' and '.join(bridge['weak'])}"
            )


def beside_controls(fit: Fit) -> dict[str, str]:
    """Of every domain, the hybrid beside the best donor, and the controls that it does not beat.

    Empty where losses were not measured.
    """
    losses = fit["losses"]
    found: dict[str, str] = {}
    if losses is None:
        return found
    hybrid = losses["hybrid"]
    controls = [(UNIGRAM, losses["unigram"]), *replaced_rows(fit)]
    for domain in hybrid:
        best = best_donor(fit, domain)
        words = gaps(hybrid, losses["donors"][best])[domain].beside(f"{best} alone")
        beside = {name: gaps(hybrid, row)[domain] for name, row in controls}
        if ahead := [name for name, gap in beside.items() if gap.worse]:
            words += f"; better than this hybrid: {', '.join(ahead)}"
        if equal := [name for name, gap in beside.items() if not gap.certain]:
            words += f"; no measurable difference: {', '.join(equal)}"
        found[domain] = words
    return found


def best_donor(fit: Fit, domain: str) -> str:
    """The donor whose loss alone is the lowest on a domain."""
    donors: dict[str, Losses] = fit["losses"]["donors"]
    return min(donors, key=lambda name: float(donors[name][domain]["per_byte"]))


def _bridges(fit: Fit) -> Table:
    domains = [domain["name"] for domain in fit["domains"]]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("bridge")
    table.add_column("init")
    for heading in ("lambda", "tokens", "aligned", *(f"R2 {d}" for d in domains), "RMS ratio"):
        table.add_column(heading, justify="right")
    for bridge in fit["bridges"]:
        table.add_row(
            bridge["place"],
            bridge["init"],
            "-" if bridge["shrink"] is None else f"{bridge['shrink']:.0e}",
            count(bridge["tokens"]),
            f"{bridge['aligned']:.1%}",
            *(f"{bridge['r2'][domain]:.3f}" for domain in domains),
            f"{bridge['rms_ratio']:.2f}",
        )
    return table


def _losses(fit: Fit) -> Table:
    domains = [domain["name"] for domain in fit["domains"]]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("held-out loss, nats per byte")
    for domain in domains:
        table.add_column(domain, justify="right")
    for name, losses in loss_rows(fit):
        cells = (f"{losses[domain]['per_byte']:.3f}" for domain in domains)
        table.add_row(name, *cells, style="bold" if name == "this hybrid" else None)
    return table
