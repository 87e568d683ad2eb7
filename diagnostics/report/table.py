"""A trace for the terminal: one row per slot, one per set, then the summary. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.console import count
from hybridize.diagnostics.report.summary import losses, summary, verdict
from hybridize.diagnostics.report.words import mixer_kind, number, origin, percent
from hybridize.diagnostics.subject.trace import Curve, Set, Slot, Trace

BAR = 7  # columns
EIGHTHS = " ▏▎▍▌▋▊▉█"
NAME, KIND = 18, 16  # characters that a slot's origin and its mixer may fill: 100 columns in all


def trace_table(trace: Trace) -> RenderableType:
    """Slots from the bottom of the model (slot 0) to its top, sets, and what follows in words."""
    model = trace.model
    title = (
        f"{model.name}: {model.model_type}, {len(trace.slots)} slots, "
        f"{count(model.parameters)} parameters"
    )
    held_out = Text(f"held-out loss, nats per byte: {losses(trace)}")
    parts: list[RenderableType] = [Text(title, style="bold"), *_how(trace), held_out, Text()]
    parts += [_slots(trace), _legend(trace), Text()]
    parts += [_sets(trace), Text()] if trace.sets else []
    return Group(*parts, _sentences(summary(trace)), Text())


def _sentences(listed: Iterable[str]) -> Table:
    """A dash before each, and what does not fit its line below its beginning."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for _ in range(2):
        table.add_column()
    for sentence in listed:
        table.add_row("-", Text(sentence))
    return table


def _how(trace: Trace) -> list[Text]:
    """What decides the numbers and does not stand in the recipe."""
    settings = trace.settings
    if settings.compute_dtype is None or settings.start_token is None:
        return []
    before = "nothing" if settings.start_token == "none" else settings.start_token
    return [
        Text(f"computed in {settings.compute_dtype} on {settings.device}; {before} before text")
    ]


def bar(value: float | None, largest: float, *, width: int = BAR) -> str:
    """A horizontal bar of block characters, `largest` at full width; a value above 0 shows."""
    if not value or largest <= 0:
        return ""
    eighths = max(1, round(8 * width * min(1.0, value / largest)))
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _slots(trace: Trace) -> Table:
    curve = trace.headline
    parts = {part: _part(trace, part) for part in ("mixer", "mlp")}
    headings = ["slot", "<from", "<kind", curve.part, "<", "<interval"]
    headings += [name for name, part in parts.items() if part]
    table = _table(*headings, "influence", "growth")
    largest = max((mean for mean in curve.mean if mean is not None), default=0.0)
    above = None
    for slot in trace.slots:
        i = slot.slot
        marked = i == curve.vulnerable
        cells = [_label(slot, marked=marked), _origin(slot, named=slot.donor != above)]
        above = slot.donor
        cells += [_cut(mixer_kind(slot), KIND)]
        cells += [_nats(curve.mean[i]), bar(curve.mean[i], largest), _interval(curve, i)]
        cells += [_nats(part.mean[i]) for part in parts.values() if part]
        cells += [f"{trace.flow.influence[i]:.3f}", number(trace.flow.growth[i], 3)]
        table.add_row(*map(Text, cells), style="bold" if marked else None)
    return table


def _part(trace: Trace, part: str) -> Curve | None:
    """The curve of a part beside the headline's, where it was measured and is another one."""
    try:
        found = trace.curve(trace.headline.kind, part)
    except KeyError:
        return None
    return None if found is trace.headline else found


def _label(slot: Slot, *, marked: bool) -> str:
    return f"*{slot.slot}" if marked else str(slot.slot)


def _legend(trace: Trace) -> Text:
    curve, level = trace.headline, trace.settings.level
    mark = "* vulnerable" if curve.vulnerable is not None else f"vulnerable: {verdict(curve)}"
    first = trace.settings.perturbations[0]
    return Text(
        f"{mark}\n{', '.join(dict.fromkeys([curve.part, *trace.settings.parts]))}: sensitivity to "
        f"{first.kind} {first.strength:g}, in nats; interval: {level:.0%}, of the {curve.part}"
        f"{_refined(trace)}",
        style="dim",
    )


def _refined(trace: Trace) -> str:
    """Which slots were measured with more seeds than the others."""
    found = trace.settings.refined
    if found is None:
        return ""
    seeds = trace.settings.perturbations[0].seeds
    slots = ", ".join(map(str, found.slots))
    return f"\nslots {slots}: {found.seeds} seeds; all others: {seeds}, and no mixer or MLP alone"


def _sets(trace: Trace) -> Table:
    table = _table("<set", "items", "correct", "accuracy", "chance", "particle", "logit", "ridge")
    for found in trace.sets:
        lenses = [found.lenses.get(name) for name in ("logit", "ridge")]
        cells = [found.name, _items(found), str(found.correct)]
        cells += [percent(found.accuracy), percent(found.chance), number(found.particle)]
        cells += [number(lens.particle if lens else None) for lens in lenses]
        table.add_row(*map(Text, cells))
    return table


def _items(found: Set) -> str:
    whole = found.readable == found.items
    return str(found.items) if whole else f"{found.readable} of {found.items}"


def _table(*headings: str) -> Table:
    """A table in the house's style; `<` before a heading: a column of text."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        left = heading.startswith("<")
        table.add_column(
            heading.removeprefix("<"), justify="left" if left else "right", no_wrap=True
        )
    return table


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _origin(slot: Slot, *, named: bool) -> str:
    """The origin with the donor's name cut, so that layer and bridge stay to be seen.

    Args:
        named: False where the slot below is of the same donor: then the name is left out.
    """
    room = NAME - len(origin(slot)) + len(slot.donor)
    name = _cut(slot.donor, max(1, room))
    return origin(slot.model_copy(update={"donor": name if named else " " * len(name)}))


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(curve: Curve, slot: int) -> str:
    low, high = curve.low[slot], curve.high[slot]
    return "" if low is None or high is None else f"{low:.4f}-{high:.4f}"
