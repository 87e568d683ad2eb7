"""How bridges were fitted, and what the hybrid is worth beside its controls, for the eye."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.console import count

Fit = Mapping[str, Any]  # as `fitting.run` gives it
Losses = Mapping[str, Mapping[str, float]]  # by domain


def fit_table(fit: Fit) -> RenderableType:
    """Bridges, losses, and what follows from them in words."""
    parts: list[RenderableType] = [Text()]
    if fit["bridges"]:
        parts += [_bridges(fit), Text()]
    parts += [_losses(fit), Text(), Text("\n".join(verdict(fit)))]
    return Group(*parts)


def loss_rows(fit: Fit) -> Iterator[tuple[str, Losses]]:
    """Every model that was measured, the hybrid last."""
    losses = fit["losses"]
    yield "unigram model", losses["unigram"]
    for donor, row in losses["donors"].items():
        yield f"{donor} alone", row
    for span, row in losses["null"].items():
        yield f"a matrix for {span}", row
    yield "this hybrid", losses["hybrid"]


def verdict(fit: Fit) -> list[str]:
    """What a user should know before anything else is done with the model."""
    return [*_weak(fit), *_against_controls(fit)]


def _weak(fit: Fit) -> Iterator[str]:
    for bridge in fit["bridges"]:
        if bridge["weak"]:
            yield (
                f"warning: the bridge {bridge['place']} explains less than {fit['gate']:.0%} of "
                f"the stream that it should give, on {' and '.join(bridge['weak'])}"
            )


def _against_controls(fit: Fit) -> Iterator[str]:
    """Of every domain, whether the hybrid beats its controls."""
    losses = fit["losses"]
    for domain in fit["domains"]:
        name = domain["name"]
        here = losses["hybrid"][name]["per_byte"]
        best = min(losses["donors"], key=lambda d: losses["donors"][d][name]["per_byte"])
        gap = here - losses["donors"][best][name]["per_byte"]
        better = "worse" if gap > 0 else "better"
        words = f"{name}: {abs(gap):.3f} nats per byte {better} than {best} alone"
        idle = [s for s, row in losses["null"].items() if row[name]["per_byte"] <= here]
        if idle:
            words += f"; worth no more than a matrix: {', '.join(idle)}"
        if here >= losses["unigram"][name]["per_byte"]:
            words += "; no better than knowing how frequent tokens are"
        yield words


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
