"""Small charts as SVG text, with slots or depths along x. No torch, and nothing of a trace.

Colours and fonts are the page's: a chart only names classes of its style sheet (`style.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from hybridize.diagnostics.report.words import number

WIDTH, HEIGHT = 360, 190  # of a panel, in its own units: about one pixel each
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 14, 34
ROW = 22  # height of a row of `interval_figure`
DECADES = 5  # that a logarithmic axis shows at most
MANY = 40  # values from which on lines go without dots, and dots without stems


@dataclass(frozen=True)
class Axis:
    """A range of values, with round numbers in it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, from 0 to 1; what lies outside is moved to the end."""
        if not self.log:
            share = (value - self.low) / (self.high - self.low)
        elif value <= self.low:
            share = 0.0
        else:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(1.0, max(0.0, share))


@dataclass(frozen=True)
class Mark:
    """One slot's value; `None` where there is nothing to measure."""

    value: float | None
    low: float | None = None
    high: float | None = None
    style: str = ""


@dataclass(frozen=True)
class Line:
    values: Sequence[float | None]
    style: str


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        note: below the title, in words.
        tips: one for each x, shown under the pointer.
        flag: x of the mark that is pointed out.
        rule: x of a vertical line.
    """

    title: str
    note: str
    x: str
    unit: str
    y: Axis
    tips: Sequence[str]
    marks: Sequence[Mark] = ()
    lines: Sequence[Line] = ()
    flag: int | None = None
    rule: float | None = None


def linear_axis(values: Iterable[float | None], *, whole: bool = False) -> Axis:
    """An axis from 0, or from below it, over all values; ticks at 1, 2 or 5 times a power of 10."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    if low == high:
        high = 1.0
    step = _round_up((high - low) / 4)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    return Axis(min(low, ticks[0]), ticks[-1], ticks)


def value_axis(values: Iterable[float | None], *, wide: float = 20) -> Axis:
    """A logarithmic axis where positive values span more than `wide` times; else a linear one."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    positive = [v for v in known if v > 0]
    if not positive or min(known) < 0 or max(positive) <= wide * min(positive):
        return linear_axis(known)
    low, high = max(min(positive), max(positive) / 10**DECADES), _round_up(max(positive))
    low = _round_down(low)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [(m, m * 10.0**e) for e in powers for m in (1, 2, 5)]
    inside = [(m, tick) for m, tick in inside if low * 0.999 < tick < high * 1.001]
    decades = [tick for m, tick in inside if m == 1]
    ticks = decades if len(decades) > 2 else [tick for _, tick in inside]
    return Axis(low, high, tuple(ticks), log=True)


def figure(panel: Panel) -> str:
    """A panel with its caption; where it has no value at all, words instead of a chart."""
    num = len(panel.tips)
    values = [
        *(mark.value for mark in panel.marks),
        *(v for line in panel.lines for v in line.values),
    ]
    if all(value is None for value in values):
        return framed(panel.title, panel.note, '<p class="dim">Nothing could be measured.</p>')
    body = [_y_ticks(panel.y), _x_ticks(num)]
    if panel.rule is not None:
        x = _x(panel.rule, num)
        body.append(f'<path class="rule" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    body += [_line(panel.y, line) for line in panel.lines]
    body += [_mark(panel.y, i, mark, num) for i, mark in enumerate(panel.marks)]
    if panel.flag is not None:
        x = _x(panel.flag, num)
        body.append(f'<path class="flag" d="M{x - 5:.1f} 2h10l-5 8z"/>')
    body += [_tip(i, tip, num) for i, tip in enumerate(panel.tips)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    body.append(_text(middle, HEIGHT - 4, panel.x, "label middle"))
    body.append(
        f'<text class="label middle" transform="translate(10 {(TOP + HEIGHT - BOTTOM) / 2:g}) '
        f'rotate(-90)">{escape(panel.unit)}</text>'
    )
    return framed(panel.title, panel.note, svg(body, WIDTH, HEIGHT, panel.title))


def interval_figure(
    title: str, note: str, rows: Sequence[tuple[str, str, Sequence[float]]], depth: int
) -> str:
    """Rows of quartiles over depth: label, tip, and the three quartiles."""
    left, bottom = 130, TOP + ROW * len(rows)
    across = (WIDTH - RIGHT - left) / (depth + 1)

    def x(value: float) -> float:
        return left + (value + 0.5) * across

    body = []
    for tick in _whole_ticks(depth + 1):
        body.append(f'<path class="grid" d="M{x(tick):.1f} {TOP}V{bottom}"/>')
        body.append(_text(x(tick), bottom + 14, str(tick), "tick middle"))
    for i, (label, tip, (low, median, high)) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        body.append(
            f"<g><title>{escape(tip)}</title>"
            f'<rect class="hit" x="0" y="{y - ROW / 2:g}" width="{WIDTH}" height="{ROW}"/>'
            f"{_text(left - 8, y + 4, label, 'tick end')}"
            f'<path class="whisker" d="M{x(low):.1f} {y:g}H{x(high):.1f}"/>'
            f'<circle class="dot" cx="{x(median):.1f}" cy="{y:g}" r="4"/></g>'
        )
    body.append(_text((left + WIDTH - RIGHT) / 2, bottom + 30, "depth", "label middle"))
    return framed(title, note, svg(body, WIDTH, bottom + 34, title))


def framed(title: str, note: str, content: str) -> str:
    words = f"<span>{escape(note)}</span>" if note else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{words}</figcaption>{content}</figure>"


def svg(body: Sequence[str], width: float, height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of 10, above."""
    power = 10.0 ** math.floor(math.log10(value))
    return min(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(m * power for m in (1, 2, 5) if m * power <= value * (1 + 1e-9))


def _whole_ticks(num: int) -> range:
    """Round slots or depths, at most about ten."""
    step = next(s * 10**e for e in range(9) for s in (1, 2, 5) if num <= 11 * s * 10**e)
    return range(0, num, step)


def _x(index: float, num: int) -> float:
    return LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / num


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _y_ticks(axis: Axis) -> str:
    parts = []
    for tick in axis.ticks:
        y, style = _y(axis, tick), "zero" if tick == 0 else "grid"
        parts.append(f'<path class="{style}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 5, y + 4, number(tick), "tick end"))
    return "".join(parts)


def _x_ticks(num: int) -> str:
    y = HEIGHT - BOTTOM + 14
    return "".join(_text(_x(i, num), y, str(i), "tick middle") for i in _whole_ticks(num))


def _mark(axis: Axis, index: int, mark: Mark, num: int) -> str:
    """A bar, or on a logarithmic axis, where a bar has no foot, a dot on a thin stem."""
    x, floor = _x(index, num), _y(axis, max(0.0, axis.low))
    if mark.value is None:
        return _text(x, floor - 3, "×", "none middle")
    y, band = _y(axis, mark.value), (WIDTH - LEFT - RIGHT) / num
    parts = []
    if axis.log and num < MANY:
        parts.append(f'<path class="stem" d="M{x:.1f} {floor:.1f}V{y:.1f}"/>')
    if not axis.log:
        wide = min(24.0, 0.7 * band)
        parts.append(
            f'<rect class="bar {mark.style}" x="{x - wide / 2:.1f}" y="{min(y, floor):.1f}" '
            f'width="{wide:.1f}" height="{abs(y - floor):.1f}"/>'
        )
    if mark.low is not None and mark.high is not None:
        ends = f"{_y(axis, mark.low):.1f}V{_y(axis, mark.high):.1f}"
        parts.append(f'<path class="whisker" d="M{x:.1f} {ends}"/>')
    if axis.log:
        radius, open_ = min(3.6, max(1.8, 0.4 * band)), " open" if mark.value < axis.low else ""
        parts.append(
            f'<circle class="dot {mark.style}{open_}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
        )
    return "".join(parts)


def _line(axis: Axis, line: Line) -> str:
    """A line with gaps where there is no value; a value between gaps is a dot."""
    num = len(line.values)
    path, dots, drawn = [], [], False
    for i, value in enumerate(line.values):
        if value is not None:
            x, y = f"{_x(i, num):.1f}", f"{_y(axis, value):.1f}"
            path.append(f"{'L' if drawn else 'M'}{x} {y}")
            alone = not drawn and (i + 1 == num or line.values[i + 1] is None)
            if alone or num < MANY:
                dots.append(f'<circle class="point {line.style}" cx="{x}" cy="{y}" r="2"/>')
        drawn = value is not None
    return f'<path class="line {line.style}" d="{"".join(path)}"/>{"".join(dots)}' if path else ""


def _tip(index: int, tip: str, num: int) -> str:
    band = (WIDTH - LEFT - RIGHT) / num
    return (
        f'<rect class="hit" x="{LEFT + index * band:.2f}" y="0" width="{band:.2f}" '
        f'height="{HEIGHT - BOTTOM + 16}"><title>{escape(tip)}</title></rect>'
    )
