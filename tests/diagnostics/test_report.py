"""A report shows all that a trace holds, says what is undecided, and needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hybridize.diagnostics.report.charts import linear_axis, value_axis
from hybridize.diagnostics.report.html import report_html
from hybridize.diagnostics.report.summary import summary
from hybridize.diagnostics.report.table import bar, trace_table
from hybridize.diagnostics.report.words import number, numbers
from hybridize.diagnostics.subject.trace import (
    Boundary,
    Curve,
    Document,
    Flow,
    Lens,
    Loss,
    Model,
    Perturbation,
    Set,
    Settings,
    Slot,
    Trace,
)

VOID = {"meta", "br", "hr", "link", "img", "input"}
EVIL = "<script>alert('x')</script>\"&"


def a_curve(mean: Sequence[float | None], *, on: str = "all text", part: str = "layer") -> Curve:
    """A decided curve, its most sensitive slot the vulnerable one."""
    known = [value for value in mean if value is not None]
    top = list(mean).index(max(known))
    return Curve(
        on=on, kind="dropout", part=part, mean=list(mean),
        low=[None if v is None else 0.8 * v for v in mean],
        high=[None if v is None else 1.2 * v for v in mean],
        loss_rise=[None if v is None else 3 * v - 0.01 for v in mean],
        loss_error=[None if v is None else v for v in mean],
        agreement=0.97, spread=max(known) / min(known), vulnerable=top,
        why=f"97% of the resamples name slot {top}",
    )  # fmt: skip


def a_lens(depth: int, particle: float | None) -> Lens:
    rise = [0.05 + 0.4 * d / depth for d in range(depth + 1)]
    quartiles = None if particle is None else [particle, particle, particle + 0.5]
    return Lens(
        p=list(rise), logp=[-3.0] * (depth + 1), entropy=[4.0] * (depth + 1),
        particle=particle, quartiles=quartiles, jump=1, absolute=1, outstanding=None,
    )  # fmt: skip


def a_set(name: str, depth: int, *, correct: int = 24, particle: float | None = 1.0) -> Set:
    """A decided set, or one with too few correct items."""
    why = f"undecided: only {correct} of 48 answered correctly"
    return Set(
        name=name, kind="task", title=f"does it do {name}", source="by hand", blake3="b" * 64,
        items=48, readable=48, correct=correct, accuracy=correct / 48, chance=0.125,
        base=0.125,
        lenses={lens: a_lens(depth, particle) for lens in ("logit", "ridge")},
        particle=particle, lenses_differ=False,
        why=why if particle is None else f"over {correct} items; half of them between 1 and 1.5",
    )  # fmt: skip


def a_trace(num_slots: int = 3, *, name: str = "small", donors: str = "a") -> Trace:
    """A trace in which all is decided; `donors` has one letter for each slot, repeated."""
    mean = [0.2 / (1 + i) for i in range(num_slots)]
    names = [donors[i % len(donors)] for i in range(num_slots)]
    return Trace(
        model=Model(
            name=name, source="somewhere", commit=None, model_type="llama", vocabulary=64,
            dtype="float32", parameters=1234, hybrid=len(donors) > 1, files={"w": "f" * 64},
        ),
        slots=[
            Slot(
                slot=i, donor=names[i], layer=i, mixer="self_attn (full_attention)", mlp="mlp",
                width=32, bridge=i > 0 and names[i] != names[i - 1], parameters=400,
            )
            for i in range(num_slots)
        ],
        settings=Settings(
            perturbations=[Perturbation(kind="dropout", strength=0.5, title="drop", seeds=3)],
            parts=["layer", "mixer"], tokens=4096, length=128, seed=0, perturb="text",
            resamples=1000, level=0.9, share=0.5, lens_tokens=2048, device="cpu",
        ),
        sets=[a_set("adding", num_slots), a_set("rhymes", num_slots, correct=2, particle=None)],
        curves=[
            a_curve(mean), a_curve(mean[::-1], part="mixer"), a_curve(mean, on="prose"),
        ],
        flow=Flow(influence=mean, angle=mean, growth=[10.0, *[1.1] * (num_slots - 1)]),
        lens_r2=[0.5] * num_slots + [1.0],
        losses={
            "prose": Loss(
                per_byte=1.25, error=0.05, per_token=3.0, tokens=300, bytes=900,
                stretches=[100.0] * 3,
            ),
        },
        boundary=Boundary(slots=1, why="a rule of thumb"),
        layer_tokens=500, naive_layer_tokens=1000,
    )  # fmt: skip


def changed(trace: Trace, **fields: Any) -> Trace:
    return trace.model_copy(update=fields)


def undecided(trace: Trace) -> Trace:
    """The same with nothing decided."""
    fields = {"vulnerable": None, "agreement": 0.5}
    why = "undecided: only 50% of the resamples name slot 0"
    curves = [curve.model_copy(update={**fields, "why": why}) for curve in trace.curves]
    sets = [a_set(found.name, len(trace.slots), correct=1, particle=None) for found in trace.sets]
    return changed(trace, curves=curves, sets=sets)


def empty(trace: Trace) -> Trace:
    """The same with `None` wherever a trace allows it."""
    slots = [slot.model_copy(update={"mixer": None, "mlp": None}) for slot in trace.slots]
    none: list[Any] = [None] * len(slots)
    fields = dict.fromkeys(("mean", "low", "high", "loss_rise", "loss_error"), none)
    fields |= {"agreement": None, "spread": None, "vulnerable": None}
    why = "no layer has a part that can be told from the rest"
    blind = a_lens(len(slots), None).model_copy(
        update={n: [None, *none] for n in ("p", "logp", "entropy")} | {"jump": None}
    )
    lost = {"accuracy": None, "chance": None, "base": None, "correct": 0, "readable": 0}
    lost |= {"lenses": {"logit": blind, "ridge": blind}, "particle": None}
    lost |= {"why": "undecided: the tokenizer has no words for any of the items"}
    return changed(
        trace,
        slots=slots,
        curves=[c.model_copy(update={**fields, "why": why}) for c in trace.curves],
        sets=[found.model_copy(update=lost) for found in trace.sets],
        lens_r2=[None, *none],
        boundary=None,
    )


def page_of(*traces: Trace) -> str:
    return report_html(Document(hybridize="0", versions={"torch": "0"}, models=list(traces)))


def plain(trace: Trace) -> str:
    """The table as it is written into a file."""
    file = StringIO()
    Console(file=file, width=100, highlight=False, markup=False).print(trace_table(trace))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


class Balanced(HTMLParser):
    """Fails at a tag that is closed in the wrong place, or never."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"path", "rect", "circle"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def words_of(html: str) -> str:
    """The page's text, after it was found to be well-formed and to load nothing."""
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert charts
    for chart in charts:
        assert not re.search(r"nan|inf\b", chart)
        ElementTree.fromstring(chart)
    assert not re.search(r"http(?!-equiv)|src=|@import|url\(|<link|<script", html)
    return " ".join(" ".join(parser.words).split())


TRACES = {
    "decided": a_trace(),
    "hybrid": a_trace(5, donors="aabbc"),
    "undecided": undecided(a_trace()),
    "empty": empty(a_trace()),
    "one layer": a_trace(1),
    "100 layers": a_trace(100, donors="abcdefghijkl"),
    "no sets": changed(a_trace(), sets=[]),
    "no layer does anything": changed(a_trace(), curves=[
        a_curve([0.1, 0.1, 0.1]).model_copy(update={
            "mean": [0.0] * 3, "low": [0.0] * 3, "high": [0.0] * 3, "loss_rise": [0.0] * 3,
            "vulnerable": None, "spread": None, "agreement": None,
            "why": "undecided: no layer changes the outcome at all",
        })
    ]),
}  # fmt: skip
each_trace = pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)


class TestPage:
    """Who opens a report on a plane or years later sees all of it, and nothing is sent anywhere."""

    @each_trace
    def test_it_is_whole_and_shows_every_slot_and_set(self, trace: Trace) -> None:
        words = words_of(page_of(trace))
        for slot in trace.slots:
            assert f"{slot.slot} {slot.donor}:{slot.layer}" in words
        for found in trace.sets:
            assert found.name in words
            assert found.why in words
        for sentence in summary(trace):
            assert " ".join(sentence.split()) in words

    def test_models_stand_side_by_side(self) -> None:
        other = changed(a_trace(name="other", donors="b"), sets=[a_set("singing", 3)])
        words = words_of(page_of(a_trace(), other))
        assert "Diagnosis of small, other" in words
        assert words.index("held-out loss") < words.index("The vulnerable layer")
        assert "singing - 50% (12%)" in words

    def test_a_donor_has_one_colour_over_the_whole_page(self) -> None:
        html = page_of(a_trace(donors="a"), a_trace(donors="b"), a_trace(4, donors="ab"))
        colours = dict(re.findall(r'<i class="(d\d)"></i>(\w)', html))
        assert colours == {"d0": "a", "d1": "b"}
        cells = re.findall(r'<li class="(d\d)[^>]*><b>\d+</b>(\w):', html)
        assert {colours[style] == donor for style, donor in cells} == {True}

    def test_names_from_outside_stay_text(self) -> None:
        trace = a_trace(name=EVIL)
        slots = [slot.model_copy(update={"donor": EVIL, "mixer": EVIL}) for slot in trace.slots]
        sets = [
            found.model_copy(update={"name": EVIL, "title": EVIL, "source": {EVIL: [EVIL]}})
            for found in trace.sets
        ]
        curves = [curve.model_copy(update={"why": EVIL}) for curve in trace.curves]
        curves.append(curves[0].model_copy(update={"on": EVIL}))
        losses = {EVIL: trace.losses["prose"]}
        model = trace.model.model_copy(update={"source": EVIL, "model_type": EVIL, "commit": EVIL})
        evil = changed(trace, slots=slots, sets=sets, curves=curves, losses=losses, model=model)
        html = page_of(evil, evil)
        assert EVIL in words_of(html)
        assert "<script" not in html
        assert "x')</script>\"" not in html

    def test_it_says_what_could_not_be_measured(self) -> None:
        html = page_of(empty(a_trace()))
        words = words_of(html)
        assert "On no set is the task particle decided." in words
        assert "No item is answered correctly" in words
        assert "layer: sensitivity undecided: no layer has a part" in words
        assert "Nothing could be measured." in words
        assert "no mixer, no MLP" in html

    def test_a_lens_that_cannot_read_leaves_a_gap(self) -> None:
        trace = a_trace()
        found = trace.sets[0]
        lens = found.lenses["logit"].model_copy(update={"p": [0.1, None, 0.3, 0.4]})
        blind = found.model_copy(update={"lenses": {**found.lenses, "logit": lens}})
        html = page_of(changed(trace, sets=[blind]))
        assert "logit lens cannot read" in words_of(html)
        assert re.search(r'<path class="line logit" d="M[^"]*M[^"]*L', html)


class TestSummary:
    """Whoever acts on a diagnosis must not take for decided what is not."""

    def test_a_decided_trace_is_told_with_its_numbers(self) -> None:
        assert summary(a_trace()) == [
            "The vulnerable layer is slot 0 (a:0): dropout 0.5 there moves the predictions by "
            "0.2 (0.16 to 0.24) nats.",
            "Measured in other ways, mixers alone: slot 2.",
            "adding: task particle at depth 1 of 3 (quartiles 1 and 1.5, over 24 correct items). "
            "Accuracy 50%, chance 12%.",
            "Where the task is done is undecided on the other sets: too few items are answered "
            "correctly (rhymes 2 of 48).",
            "The two lenses agree within a quarter of the depth on adding.",
            "Slot 0 makes the residual stream 10 times as long.",
            "Freeze boundary (prior, not measured): train slot 0, freeze slots 1 and 2; a rule of "
            "thumb.",
            "How far to trust it: spread 3, agreement 97%, 3 stretches of text, 3 seeds; with "
            "fewer than 20 stretches the intervals are rough.",
        ]

    def test_an_undecided_trace_names_no_slot_and_no_depth(self) -> None:
        words = "\n".join(summary(undecided(a_trace())))
        assert "The vulnerable layer is undecided: only 50%" in words
        assert "Where the task is done is undecided on every set" in words
        assert not re.search(r"vulnerable layer is slot|task particle at depth|: slot \d", words)

    def test_close_layers_are_named_as_such(self) -> None:
        close = undecided(changed(a_trace(), curves=[a_curve([0.1, 0.001, 0.095])]))
        assert "Too close to call: slot 0 with 0.1 (0.08 to 0.12) and slot 2" in summary(close)[0]

    @each_trace
    def test_a_boundary_is_always_a_prior_and_no_donor_is_better(self, trace: Trace) -> None:
        words = summary(trace)
        assert [line for line in words if "reeze" in line] == [
            line for line in words if line.startswith("Freeze boundary (prior, not measured): ")
        ]
        assert "better" not in "".join(words)

    def test_layers_that_do_little_are_named_with_numbers(self) -> None:
        flow = Flow(influence=[0.5, 0.01, 0.5], angle=[0.1] * 3, growth=[1.0] * 3)
        trace = changed(a_trace(), curves=[a_curve([0.2, 0.002, 0.001])], flow=flow)
        assert (
            "Little is done by slot 1: block influence at most 0.01, sensitivity at most 0.002 "
            "nats (1.0% of the largest), loss rise at most -0.004 nats."
        ) in summary(trace)

    def test_a_layer_that_changes_nothing_is_named(self) -> None:
        words = " ".join(summary(TRACES["no layer does anything"]))
        assert "No prediction changes at all when slots 0 to 2 are perturbed" in words
        assert "spread unknown, agreement unknown" in words

    @pytest.mark.parametrize(
        ("correct", "doubt"),
        [(24, "."), (8, ": not clearly above chance."), (6, ": not above chance.")],
    )
    def test_an_accuracy_is_held_against_chance(self, correct: int, doubt: str) -> None:
        trace = changed(a_trace(), sets=[a_set("adding", 3, correct=correct)])
        assert any(line.endswith(f"chance 12%{doubt}") for line in summary(trace))

    def test_a_blind_lens_is_named_with_its_depths(self) -> None:
        found = a_set("adding", 3)
        lens = found.lenses["logit"].model_copy(update={"p": [0.1, None, None, 0.4]})
        blind = found.model_copy(update={"lenses": {**found.lenses, "logit": lens}})
        words = summary(changed(a_trace(), sets=[blind]))
        assert "The logit lens cannot read the stream at depths 1 and 2." in words


class TestTable:
    """A terminal, or a log file, shows one model at a glance."""

    def test_it_is_this_text(self) -> None:
        assert plain(a_trace(3, donors="ab")).splitlines()[:14] == GOLDEN.splitlines()

    @each_trace
    def test_it_fits_100_columns_and_ends_with_the_summary(self, trace: Trace) -> None:
        text = plain(trace)
        assert max(map(len, text.splitlines())) <= 100
        assert "…" not in text
        flat = " ".join(text.split())
        assert all(" ".join(line.split()) in flat for line in summary(trace))

    def test_a_long_name_is_cut_and_keeps_its_layer(self) -> None:
        trace = a_trace(12)
        slots = [
            slot.model_copy(update={"donor": "Qwen3-0.6B-Base-with-more", "bridge": True})
            for slot in trace.slots
        ]
        text = plain(changed(trace, slots=slots))
        assert "Qwen3-0…:0 +bridge" in text
        assert "       :11 +bridge" in text
        assert text.count("Qwen3-0…") == 1  # once for all the slots of a donor in a row
        assert max(map(len, text.splitlines())) <= 100

    def test_brackets_and_colons_in_names_are_no_markup(self) -> None:
        assert "[red]:smile:[/red]" in plain(a_trace(name="[red]:smile:[/red]"))


GOLDEN = """\
small: llama, 3 slots, 1,234 parameters
held-out loss, nats per byte: prose 1.250 ± 0.050

slot from        kind            layer         interval       mixer influence growth
  *0 a:0         full_attention 0.2000 ███████ 0.1600-0.2400 0.0667     0.200     10
   1 b:1 +bridge full_attention 0.1000 ███▌    0.0800-0.1200 0.1000     0.100    1.1
   2 a:2 +bridge full_attention 0.0667 ██▍     0.0533-0.0800 0.2000     0.067    1.1
* vulnerable
layer, mixer: sensitivity to dropout 0.5, in nats; interval: 90%, of the layer

set    items correct accuracy chance particle logit ridge
adding    48      24      50%    12%        1     1     1
rhymes    48       2       4%    12%        -     -     -

"""


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (0.00236, "0.0024"), (1.5, "1.5"), (291.684, "292"), (1e-5, "1e-5")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_runs_of_slots_are_drawn_together() -> None:
    assert numbers([1, 2, 4, 6, 7, 8]) == "1, 2, 4 and 6 to 8"


def test_ticks_are_round_and_hold_the_values() -> None:
    assert linear_axis([0.34, 0.1]).ticks == pytest.approx((0, 0.1, 0.2, 0.3, 0.4))
    assert linear_axis([]).ticks[0] == 0
    assert linear_axis([3, 1], whole=True).ticks == (0, 1, 2, 3)
    axis = value_axis([0.0004, 0.11, None])
    assert axis.log
    assert axis.ticks == pytest.approx((0.001, 0.01, 0.1))
    assert axis.low <= 0.0004 < 0.11 <= axis.high
    assert not value_axis([0.1, 0.3]).log
    assert value_axis([0.0, 0.001, 0.1]).at(0.0) == 0


def test_a_bar_is_as_long_as_its_value() -> None:
    assert bar(1.0, 1.0, width=4) == "████"
    assert bar(0.5, 1.0, width=4) == "██"
    assert bar(1e-9, 1.0, width=4) == "▏"
    assert bar(0.0, 1.0) == bar(None, 1.0) == bar(0.0, 0.0) == ""
