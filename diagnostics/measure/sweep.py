"""The layer-major sweep: text and all its variants visit each layer together, once (torch side).

At layer k the rows are the text itself, the variants that were perturbed below k, and those that
are perturbed at k. That is what a forward pass for each variant would give, with half the work:
nobody runs the layers below a perturbation a second time. A layer is in memory only while it is
visited, and the head once, at the end.

Source: LayerTracer (2026) for what is asked; the order of the work is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybridize.console import Tell
from hybridize.diagnostics.measure import measures
from hybridize.diagnostics.measure.effort import Effort
from hybridize.diagnostics.measure.lenses import Lens, fit_lens
from hybridize.diagnostics.measure.sheets import Points, Sheet
from hybridize.diagnostics.measure.variants import Stand, Variant, has_part, perturbed
from hybridize.errors import CheckFailed
from hybridize.torch_model.loading import Parts
from hybridize.torch_model.stream import Stream

LOGIT, RIDGE = "logit", "ridge"
LENSES = (LOGIT, RIDGE)
LOGITS = 1 << 25  # numbers that are held at a time: a vocabulary is wide


@dataclass
class Read:
    """What was read at the points of one set. K depths, L layers, N points, variants W.

    Attributes:
        logp: lens -> log-probability of what follows, (K, N); NaN where a lens cannot read.
        entropy: lens -> of the whole distribution, (K, N).
        base: log-probability of what follows if the item is not known, (N,): in the mean over all
            points of the set of what the model says at the end.
        correct: whether what follows is the model's most likely token, (N,).
        js: divergence of the outcome under each variant of each layer, (W, L, N), NaN where a
            layer has no such part; none where nothing was perturbed.
        loss: what the loss at each point rises by, in nats, as `js`.
    """

    logp: dict[str, Tensor]
    entropy: dict[str, Tensor]
    base: Tensor
    correct: Tensor
    js: Tensor | None = None
    loss: Tensor | None = None


@dataclass
class Swept:
    """All that one sweep has found.

    Attributes:
        read: of each set of points.
        influence, angle, growth: of each layer on the text, (L, units), see `measures`;
            `layer_growth`: without the bridge before it.
        nats: set -> summed loss of each stretch of text, and its number of tokens.
        lens_r2: of the ridge lens at each depth, (K,).
        layer_tokens: that were run.
        variants: number of pairs of a variant and a layer that has such a part.
    """

    read: list[Read]
    influence: Tensor
    angle: Tensor
    growth: Tensor
    layer_growth: Tensor
    nats: dict[str, list[tuple[float, int]]]
    lens_r2: Tensor
    layer_tokens: int
    variants: int


@torch.no_grad()
def sweep(
    parts: Parts,
    sheets: Sequence[Sheet],
    points: Sequence[Points],
    variants: Sequence[Variant],
    *,
    memory: int,
    progress: Tell,
) -> Swept:
    """Run text through a model and all its variants.

    Args:
        variants: how each layer is perturbed, for the sheets that say so.
        memory: bytes that the states of variants may take; where more are wanted, the sheets go
            through the model in several groups.

    Raises:
        CheckFailed: a layer gives what is no number.
    """
    fits = any(variant.acts_on == "fit" for variant in variants)
    plain = [sheet for sheet in sheets if not sheet.perturbed]
    # The first group takes along what is not perturbed; later ones what maps are fitted to.
    again = [sheet for sheet in plain if sheet.points is None] if fits else []
    groups = [
        [*(again if i else plain), *group]
        for i, group in enumerate(
            _groups(parts, [s for s in sheets if s.perturbed], variants, memory)
        )
    ]
    work = _Work(parts, points, variants)
    total = work.effort.sweep(groups, variants)
    work.tell = lambda done: progress(done, total)
    for i, group in enumerate(groups):
        work.run(group, first=i == 0)
    return work.swept()


@torch.no_grad()
def pass_through(parts: Parts, tokens: Tensor) -> None:
    """What a sweep does with text in layers, once, to be timed."""
    model = parts.model
    with parts.embedding():
        stream = Stream(model, tokens.to(model.device), None)
    hidden = stream.first
    for index in range(len(model.model.layers)):
        with parts.slot(index):
            hidden = stream.run_slot(index, stream.cross(index, hidden))


@torch.no_grad()
def read_out(parts: Parts, tokens: Tensor, positions: int, *, compare: bool) -> None:
    """What a sweep does with so many positions of text in the head, once, to be timed.

    Args:
        compare: as an outcome beside another one; else as what a lens reads.
    """
    model = parts.model
    with parts.embedding():
        stream = Stream(model, tokens.to(model.device), None)
    width = model.config.donor_config(model.config.head).hidden_size
    with parts.head():
        logp = measures.log_softmax(stream.logits(stream.first.new_ones(1, positions, width))[0])
        if compare:
            measures.jensen_shannon(logp, logp.flip(0))
        else:
            measures.entropy(logp)


def _groups(
    parts: Parts, sheets: Sequence[Sheet], variants: Sequence[Variant], memory: int
) -> list[list[Sheet]]:
    """Sheets whose states fit into memory together; at least one at a time."""
    config, depth = parts.model.config, len(parts.model.model.layers)
    width = max(config.donor_config(name).hidden_size for name in config.donors)
    rows = 1 + sum(variant.below(depth) for variant in variants)
    each = rows * width * parts.model.dtype.itemsize
    groups: list[list[Sheet]] = [[]]
    taken = 0
    for sheet in sheets:
        needed = sheet.tokens.numel() * each
        if groups[-1] and taken + needed > memory:
            groups.append([])
            taken = 0
        groups[-1].append(sheet)
        taken += needed
    return groups


def layer_tokens(depth: int, sheets: Sequence[Sheet], variants: Sequence[Variant]) -> int:
    """Tokens times layers that a sweep in one group runs, if every layer has every part."""
    again = sum(variant.reruns for variant in variants)
    rows = depth + len(variants) * depth * (depth - 1) // 2 + again * depth
    return sum(s.tokens.numel() * (rows if s.perturbed else depth) for s in sheets)


@dataclass
class _Run:
    """One sheet on its way upwards."""

    sheet: Sheet
    stream: Stream
    clean: Tensor
    states: list[Tensor] = field(default_factory=list)  # at its points, of each depth
    # (variant, layer) -> what arrives at the next slot
    variants: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class _Work:
    """What has been found so far."""

    def __init__(self, parts: Parts, points: Sequence[Points], variants: Sequence[Variant]) -> None:
        self.parts, self.points, self.variants = parts, points, variants
        self.model = parts.model
        self.depth = len(self.model.model.layers)
        self.device = self.model.device
        self.effort = effort_of(parts)
        self.tell: Callable[[int], None] = lambda _: None
        self.done = self.layer_tokens = 0
        K, L, W = self.depth + 1, self.depth, len(variants)

        def nothing(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=torch.float64)

        self.read = [
            Read(
                {lens: nothing(K, len(some)) for lens in LENSES},
                {lens: nothing(K, len(some)) for lens in LENSES},
                nothing(len(some)),
                torch.zeros(len(some), dtype=torch.bool),
                nothing(W, L, len(some)),
                nothing(W, L, len(some)),
            )
            for some in points
        ]
        self.flow: list[list[Tensor]] = [[] for _ in range(L)]  # of each layer, (3, rows)
        self.nats: dict[str, list[tuple[float, int]]] = {}
        self.lenses: list[Lens | None] = []
        self.said: dict[int, Tensor] = {}  # points -> sum of the outcomes' probabilities, (V,)
        self.perturbed: set[int] = set()  # points that ran through perturbed layers
        self.ran: set[tuple[int, int]] = set()  # variants, and layers that have such a part

    def run(self, sheets: Sequence[Sheet], *, first: bool) -> None:
        """One group of sheets, from the embedding to the head."""
        with self.parts.embedding():
            streams = [Stream(self.model, s.tokens.to(self.device), None) for s in sheets]
        runs = [_Run(s, t, t.first) for s, t in zip(sheets, streams, strict=True)]
        for index in range(self.depth):
            with self.parts.slot(index):
                self._visit(runs, index)
        for run in runs:
            run.states.append(_at(run.sheet, run.clean))
        if first:
            self._fit_lenses(runs)
        with self.parts.head():
            for run in runs:
                if run.sheet.points is not None:
                    self._read_out(run)

    def _visit(self, runs: Sequence[_Run], index: int) -> None:
        layer = self.model.model.layers[index]
        passed = []
        for run in runs:
            run.states.append(_at(run.sheet, run.clean))
            given = run.stream.cross(index, run.clean)
            gave = run.stream.run_slot(index, given)
            self._count(run, index)
            if not bool(gave.isfinite().all()):
                raise _not_finite(self.model, index, layer)
            passed.append((given, gave))
            if run.sheet.points is not None and self.points[run.sheet.points].kind == "text":
                self.flow[index].append(_flow(run.sheet, run.clean, given, gave))
            run.clean = gave
        stand = self._stand(runs, passed)
        for run, (given, gave) in zip(runs, passed, strict=True):
            if run.sheet.perturbed:
                for key, hidden in run.variants.items():
                    run.variants[key] = run.stream.run(hidden, index, index + 1)
                    self._count(run, index)
                for w, variant in enumerate(self.variants):
                    if not variant.acts_at(index) or not has_part(layer, variant.part):
                        continue
                    changed = perturbed(variant, run.stream, index, given, gave, stand)
                    run.variants[w, index] = changed
                    if variant.reruns:
                        self._count(run, index)

    def _stand(self, runs: Sequence[_Run], passed: Sequence[tuple[Tensor, Tensor]]) -> Stand | None:
        """The linear map closest to a layer, if a variant wants it.

        It is fitted to the update: what few tokens say nothing about is left as it is.
        """
        if all(variant.acts_on != "fit" for variant in self.variants):
            return None
        pairs = [
            (_at(run.sheet, given), _at(run.sheet, gave))
            for run, (given, gave) in zip(runs, passed, strict=True)
            if run.sheet.points is None
        ]
        given, gave = (torch.cat(side) for side in zip(*pairs, strict=True))
        update = fit_lens(given, gave - given)
        self._spent(self.effort.fit(len(given)))
        return lambda hidden: hidden + update(hidden)

    def _count(self, run: _Run, index: int) -> None:
        """A sheet has passed a layer."""
        tokens = run.sheet.tokens.numel()
        self.layer_tokens += tokens
        self._spent(tokens * self.effort.layers[index])

    def _spent(self, effort: int) -> None:
        self.done += effort
        self.tell(self.done)

    def _fit_lenses(self, runs: Sequence[_Run]) -> None:
        """From each depth onto the state that arrives before the final norm."""
        fitted = [run for run in runs if run.sheet.points is None]
        ends = [run.stream.cross(self.depth, run.states[-1]) for run in fitted]
        for depth in range(self.depth + 1 if fitted else 0):
            states = torch.cat([run.states[depth] for run in fitted])
            self.lenses.append(fit_lens(states, torch.cat(ends)))
            self._spent(self.effort.fit(len(states)))

    def _read_out(self, run: _Run) -> None:
        """All that is asked of a sheet's points, with the head in memory."""
        sheet, stream = run.sheet, run.stream
        assert sheet.points is not None
        points, read = self.points[sheet.points], self.read[sheet.points]
        targets = points.targets[sheet.members].to(self.device)
        final = stream.norm(stream.cross(self.depth, run.clean))
        if points.kind == "text":
            self._add_nats(points.name, run, final)
        clean = _at(sheet, final)
        self._read_outcome(run, read, clean, targets)
        for depth, states in enumerate(run.states[:-1]):
            for lens, seen in self._views(depth, states, run):
                for part in _chunks(sheet, self.model.config.vocab_size):
                    logp = measures.log_softmax(stream.logits(seen[None, part])[0])
                    members = sheet.members[part]
                    read.logp[lens][depth, members] = _of(logp, targets[part]).cpu()
                    read.entropy[lens][depth, members] = measures.entropy(logp).cpu()
                    self._spent(self.effort.read * len(members))
        if sheet.perturbed and self.variants:
            self.perturbed.add(sheet.points)
            self._compare(run, read, clean, targets)

    def _read_outcome(self, run: _Run, read: Read, clean: Tensor, targets: Tensor) -> None:
        """What the model says at the end, which every lens sees as it is."""
        sheet = run.sheet
        assert sheet.points is not None
        for part in _chunks(sheet, self.model.config.vocab_size):
            logits = run.stream.logits(clean[None, part])[0]
            logp, members = measures.log_softmax(logits), sheet.members[part]
            for lens in LENSES:
                read.logp[lens][self.depth, members] = _of(logp, targets[part]).cpu()
                read.entropy[lens][self.depth, members] = measures.entropy(logp).cpu()
            read.correct[members] = (logits.argmax(-1) == targets[part]).cpu()
            said = logp.exp().sum(0, dtype=torch.float64)
            self.said[sheet.points] = self.said.get(sheet.points, 0.0) + said
            self._spent(self.effort.read * len(members))

    def _views(self, depth: int, states: Tensor, run: _Run) -> Iterator[tuple[str, Tensor]]:
        """What the head is given at a depth, through each lens that can look there."""
        width = self.model.config.donor_config(self.model.config.head).hidden_size
        if states.shape[-1] == width:
            yield LOGIT, _normed(run, states)
        if self.lenses and (lens := self.lenses[depth]) is not None:
            yield RIDGE, _normed(run, lens(states))

    def _compare(self, run: _Run, read: Read, clean: Tensor, targets: Tensor) -> None:
        """The outcome of each variant beside the clean one."""
        sheet, stream = run.sheet, run.stream
        assert read.js is not None
        assert read.loss is not None
        ends = {}
        while run.variants:
            key, hidden = run.variants.popitem()
            ends[key] = _at(sheet, stream.norm(stream.cross(self.depth, hidden)))
        for part in _chunks(sheet, self.model.config.vocab_size):
            members = sheet.members[part]
            logp = measures.log_softmax(stream.logits(clean[None, part])[0])
            for (w, layer), end in ends.items():
                logq = measures.log_softmax(stream.logits(end[None, part])[0])
                js = measures.jensen_shannon(logp, logq)
                # An outcome that is no number (16 bits overflow) has nothing of the clean one.
                read.js[w, layer, members] = js.nan_to_num(measures.LN2).cpu()
                rise = _of(logp, targets[part]) - _of(logq, targets[part])
                read.loss[w, layer, members] = rise.cpu()
                self.ran.add((w, layer))
                self._spent(self.effort.compare * len(members))

    def _add_nats(self, name: str, run: _Run, final: Tensor) -> None:
        """Loss over all of the tokens of a text."""
        step = max(1, LOGITS // self.model.config.vocab_size)
        for row, length in enumerate(run.sheet.lengths.tolist()):
            total = 0.0
            for start in range(run.sheet.start, length - 1, step):
                stop = min(start + step, length - 1)
                logits = run.stream.logits(final[row : row + 1, start:stop])[0]
                targets = run.stream.tokens[row, start + 1 : stop + 1]
                total -= float(_of(measures.log_softmax(logits), targets).sum())
            self._spent(self.effort.read * length)
            self.nats.setdefault(name, []).append((total, max(0, length - 1 - run.sheet.start)))

    def swept(self) -> Swept:
        nothing = torch.zeros(4, 0, dtype=torch.float64)
        flow = torch.stack([torch.cat([nothing, *layer], 1) for layer in self.flow])
        for i, read in enumerate(self.read):
            if i in self.said:
                mean = self.said[i].cpu() / len(self.points[i])
                read.base = mean.log()[self.points[i].targets]
            if i not in self.perturbed:
                read.js = read.loss = None
        r2 = [torch.nan if lens is None else lens.r2 for lens in self.lenses]
        influence, angle, growth, layer_growth = flow.unbind(1)
        return Swept(
            read=self.read,
            influence=influence,
            angle=angle,
            growth=growth,
            layer_growth=layer_growth,
            nats=self.nats,
            lens_r2=torch.tensor(r2, dtype=torch.float64),
            layer_tokens=self.layer_tokens,
            variants=len(self.ran),
        )


def _at(sheet: Sheet, hidden: Tensor) -> Tensor:
    """The states at a sheet's positions, (N, width)."""
    return hidden[sheet.rows.to(hidden.device), sheet.columns.to(hidden.device)]


def _of(logp_NV: Tensor, targets_N: Tensor) -> Tensor:
    return logp_NV.gather(-1, targets_N[:, None])[:, 0].double()


def effort_of(parts: Parts) -> Effort:
    """What the steps of a sweep of a model take."""
    config = parts.model.config
    return Effort.of(
        [sum(p.numel() for p in layer.parameters()) for layer in parts.model.model.layers],
        width=max(config.donor_config(name).hidden_size for name in config.donors),
        vocabulary=config.vocab_size,
    )


def _normed(run: _Run, states: Tensor) -> Tensor:
    """States at a sheet's positions after the final norm, which wants whole rows."""
    shape = (*run.sheet.tokens.shape, states.shape[-1])
    rows = states.new_zeros(shape).to(run.clean.dtype)
    at = run.sheet.rows.to(rows.device), run.sheet.columns.to(rows.device)
    rows[at] = states.to(rows.dtype)
    return _at(run.sheet, run.stream.norm(rows))


def _chunks(sheet: Sheet, vocabulary: int) -> Iterator[slice]:
    """So many points at a time that their distributions fit into memory."""
    step = max(1, LOGITS // vocabulary)
    for start in range(0, len(sheet.members), step):
        yield slice(start, start + step)


def _flow(sheet: Sheet, arrived: Tensor, given: Tensor, gave: Tensor) -> Tensor:
    """Block influence, angular distance, growth: over each row's real tokens, (4, rows).

    Growth is there twice, with the bridge and without, and is a median: some models lengthen the
    first token's state a thousandfold in one layer.
    """
    rows = []
    for row, length in enumerate(sheet.lengths.tolist()):
        a, b, c = arrived[row, :length], given[row, :length], gave[row, :length]
        turned = measures.block_influence(b, c).mean(), measures.angular_distance(b, c).mean()
        grown = [measures.growth(arrived, c).median() for arrived in (a, b)]
        rows.append(torch.stack([*turned, *grown]).cpu())
    return torch.stack(rows, 1)


def _not_finite(model: torch.nn.Module, index: int, layer: torch.nn.Module) -> CheckFailed:
    wrong = [n for n, p in layer.named_parameters() if not bool(p.isfinite().all())]
    cause = f": its {wrong[0]} holds numbers that are not finite" if wrong else ""
    return CheckFailed(
        f"layer {index} gives states that are not finite{cause}",
        fix="repair or replace the checkpoint; in 16 bits, try a wider dtype",
    )
