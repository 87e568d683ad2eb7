"""All models of a report side by side, as one table of HTML. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hybridize.console import count
from hybridize.diagnostics.report.page import group, row, table
from hybridize.diagnostics.report.summary import doubt
from hybridize.diagnostics.report.words import number, origin, percent
from hybridize.diagnostics.subject.trace import Set, Slot, Trace

DENSE = 40  # slots from which on they are drawn without gaps


def comparison(traces: Sequence[Trace], colours: Mapping[str, str]) -> str:
    """Models as columns; `colours` gives the class of each donor."""
    heads = [f'<a href="#m{i}">{escape(t.model.name)}</a>' for i, t in enumerate(traces)]
    rows = [
        row("slots, by donor", (_strip(trace.slots, colours) for trace in traces)),
        row("architecture", (escape(trace.model.model_type) for trace in traces)),
        row("parameters", (count(trace.model.parameters) for trace in traces)),
        group("held-out loss, nats per byte", len(traces) + 1),
    ]
    for name in dict.fromkeys(name for trace in traces for name in trace.losses):
        rows.append(row(escape(name), (_loss(trace, name) for trace in traces)))
    rows += [
        group("layers", len(traces) + 1),
        row("vulnerable", map(_vulnerable, traces)),
        row("its sensitivity, nats", map(_sensitivity, traces)),
        row("freeze (prior, not measured)", map(_boundary, traces)),
        group("accuracy (chance)", len(traces) + 1),
    ]
    for name in dict.fromkeys(found.name for trace in traces for found in trace.sets):
        cells = (next((s for s in trace.sets if s.name == name), None) for trace in traces)
        rows.append(row(escape(name), map(_accuracy, cells)))
    return table(["", *heads], rows) + (
        '<p class="dim">Losses with their standard errors over stretches of text. An accuracy in '
        "grey is less than two standard errors above chance, the share of the commonest answer.</p>"
    )


def _strip(slots: Sequence[Slot], colours: Mapping[str, str]) -> str:
    """The slots as a row of colours."""
    cells = (
        f'<span class="{colours[slot.donor]}{" bridge" if slot.bridge else ""}" '
        f'title="slot {slot.slot}, {escape(origin(slot))}"></span>'
        for slot in slots
    )
    dense = " dense" if len(slots) > DENSE else ""
    return f'<div class="mini{dense}">{"".join(cells)}</div>'


def _loss(trace: Trace, name: str) -> str:
    loss = trace.losses.get(name)
    if loss is None:
        return "-"
    return f'{loss.per_byte:.3f} <span class="dim">± {loss.error:.3f}</span>'


def _vulnerable(trace: Trace) -> str:
    slot = trace.headline.vulnerable
    if slot is None:
        return f'<span class="dim" title="{escape(trace.headline.why)}">undecided</span>'
    return f"slot {slot} of {len(trace.slots)}"


def _sensitivity(trace: Trace) -> str:
    curve = trace.headline
    return "-" if curve.vulnerable is None else number(curve.mean[curve.vulnerable])


def _boundary(trace: Trace) -> str:
    found = trace.boundary
    if found is None:
        return "-"
    where = f"from slot {found.slots}" if found.slots < len(trace.slots) else "none"
    return f'<span title="{escape(found.why)}">{where}</span>'


def _accuracy(found: Set | None) -> str:
    if found is None or found.accuracy is None:
        return "-"
    words = f'{percent(found.accuracy)} <span class="dim">({percent(found.chance)})</span>'
    return f'<span class="dim">{words}</span>' if doubt(found) else words
