"""The report: one HTML file that needs nothing else, neither a network nor a script. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from hybridize.console import count
from hybridize.diagnostics.report import figures
from hybridize.diagnostics.report.charts import Axis
from hybridize.diagnostics.report.comparison import comparison
from hybridize.diagnostics.report.page import (
    colour_legend,
    definitions,
    line_legend,
    page,
    panels,
    row,
    table,
)
from hybridize.diagnostics.report.summary import losses, summary
from hybridize.diagnostics.report.words import mixer_kind, number, origin, percent
from hybridize.diagnostics.subject.trace import Document, Lens, Set, Slot, Trace

MANY = 24  # slots from which on a strip is drawn densely
LENSES = (("logit lens", "logit"), ("ridge lens", "ridge"))


def report_html(document: Document) -> str:
    """A page with a comparison of the models, a section for each, and how it was all measured."""
    traces = document.models
    colours, axis = figures.palette(traces), figures.sensitivity_axis(traces)
    title = "Diagnosis of " + ", ".join(trace.model.name for trace in traces)
    body = [
        f"<h1>{escape(title)}</h1>",
        '<p class="dim">Slots and depths count from 0: depth 0 is the embedding, depth d the '
        "stream behind slot d - 1. Point at a chart for its numbers. How it was measured, and "
        "what the words mean, stands at the end.</p>",
        colour_legend(colours),
    ]
    if len(traces) > 1:
        body.append(comparison(traces, colours))
    for i, trace in enumerate(traces):
        body.append(f'<section id="m{i}">{"".join(_section(trace, axis, colours))}</section>')
    return page(title, [*body, _method(document)])


def _section(trace: Trace, axis: Axis, colours: Mapping[str, str]) -> Iterator[str]:
    model = trace.model
    kind = "a hybrid: " if model.hybrid else ""
    yield (
        f'<h2>{escape(model.name)}</h2><p class="dim">{kind}{escape(model.model_type)}, '
        f"{len(trace.slots)} slots, {count(model.parameters)} parameters, vocabulary "
        f"{count(model.vocabulary)}, {escape(model.dtype)}; {escape(model.source)}</p>"
        f"<p>Loss on held-out text, nats per byte: {escape(losses(trace))}.</p>"
    )
    yield f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in summary(trace))}</ul>"
    yield _strip(trace.slots, colours)
    yield from _sensitivity(trace, axis, colours)
    yield from _tasks(trace)
    yield "<h3>What the slots do to the stream</h3>"
    yield line_legend(LENSES)
    yield panels(figures.flow_figures(trace, colours))


def _strip(slots: Sequence[Slot], colours: Mapping[str, str]) -> str:
    """The slots from the bottom of the model to its top, with what stands in them."""
    dense = len(slots) > MANY
    cells = []
    for slot in slots:
        parameters = f"{count(slot.parameters)} parameters, width {slot.width}"
        tip = f"{slot.mixer or 'no mixer'}, {slot.mlp or 'no MLP'}; {parameters}"
        kind = "" if dense else f"<span>{escape(mixer_kind(slot))}</span>"
        cells.append(
            f'<li class="{colours[slot.donor]}{" bridge" if slot.bridge else ""}" '
            f'title="{escape(tip)}"><b>{slot.slot}</b>{escape(origin(slot))}{kind}</li>'
        )
    return f'<ol class="{"dense" if dense else "wide"}">{"".join(cells)}</ol>'


def _sensitivity(trace: Trace, axis: Axis, colours: Mapping[str, str]) -> Iterator[str]:
    scale = "a logarithmic" if axis.log else "a linear"
    yield (
        f"<h3>Sensitivity of the slots</h3><p>On {scale} scale, the same for all models of this "
        f"page; whiskers are {trace.settings.level:.0%} intervals, those of the loss one standard "
        "error; one draw alone has none. Triangle: the vulnerable slot, where one is decided. Open "
        "dot: below the scale. ×: no such part in this slot.</p>"
    )
    if styles := figures.dashes(trace):
        yield line_legend((f"on {name} alone", style) for name, style in styles.items())
    for how in trace.settings.perturbations:
        seeds = "1 seed" if how.seeds == 1 else f"{how.seeds} seeds"
        yield f"<p><b>{escape(how.kind)} {how.strength:g}</b>: {escape(how.title)}; {seeds}.</p>"
        yield panels(figures.sensitivity_figures(trace, how.kind, axis, colours))
        yield panels(figures.loss_figures(trace, how.kind, colours))


def _tasks(trace: Trace) -> Iterator[str]:
    yield "<h3>Where tasks are done</h3>"
    if not trace.sets:
        yield "<p>No set of items was asked.</p>"
        return
    yield _sets(trace.sets)
    found = figures.particle_figures(trace)
    yield panels(found, uneven=True) if found else "<p>On no set is the task particle decided.</p>"
    lenses = figures.lens_figures(trace)
    if not lenses:
        yield "<p>No item is answered correctly: there is no p(answer) to show by depth.</p>"
        return
    yield (
        "<p>Probability of the answer by depth, mean over the items answered correctly. Each panel "
        "has a scale of its own; the dotted line is the task particle. Base: probability of the "
        "answer if the item is not known, from which its rise is counted. In a gap the lens cannot "
        "read the stream.</p>"
    )
    yield line_legend(LENSES) + panels(lenses)


def _sets(sets: Sequence[Set]) -> str:
    heads = ["set", "items", "correct", "accuracy", "chance", "particle"]
    heads += ["logit, ridge", "jump", "absolute", "outstanding"]
    rows = []
    for found in sets:
        readable = "" if found.readable == found.items else f"{found.readable} of "
        cells = [f"{readable}{found.items}", str(found.correct)]
        cells += [percent(found.accuracy), percent(found.chance), number(found.particle)]
        cells += [_both(found, name) for name in ("particle", "jump", "absolute", "outstanding")]
        rows.append(row(escape(found.name), cells, tip=found.title, text=escape(found.why)))
    return table(heads, rows, text="decision")


def _both(found: Set, name: str) -> str:
    """A measure by both lenses."""
    lenses: list[Lens | None] = [found.lenses.get(lens) for _, lens in LENSES]
    values = [getattr(lens, name) if lens else None for lens in lenses]
    return "-" if values == [None, None] else ", ".join(map(number, values))


def _method(document: Document) -> str:
    """How it was measured, with what, and what the words mean."""
    versions = {"hybridize": document.hybridize, **document.versions}
    parts = ["<h3>Definitions</h3>", definitions(document.definitions.items())]
    parts += ["<h3>Versions</h3>", definitions(versions.items())]
    for trace in document.models:
        parts += [f"<h3>{escape(trace.model.name)}</h3>", definitions(_provenance(trace))]
    title = "How it was measured: definitions, settings, data, versions"
    return f"<details><summary>{title}</summary>{''.join(parts)}</details>"


def _provenance(trace: Trace) -> Iterator[tuple[str, str]]:
    """Everything that another run would have to have in common, as plain text."""
    yield "source", trace.model.source
    yield "commit", trace.model.commit or "not known"
    for file, digest in trace.model.files.items():
        yield file, f"BLAKE3 {digest}"
    for found in trace.sets:
        yield found.name, f"{found.title}; {_words(found.source)}; BLAKE3 {found.blake3}"
    for name, value in trace.settings.model_dump().items():
        yield name, _words(value)
    saved = trace.layer_tokens / max(1, trace.naive_layer_tokens)
    yield "layer-tokens", f"{trace.layer_tokens:,}, {saved:.0%} of those of a naive sweep"


def _words(value: Any) -> str:
    """A value out of JSON as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "; ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
