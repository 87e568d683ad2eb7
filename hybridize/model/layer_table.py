"""A stack as a table: a row for each run of layers that are alike, with the sum of their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.console import count, size

WORDS, NUMBERS = ("from", "mixer", "mlp"), ("width", "parameters", "bytes")
MOST_ROWS = 300  # of a table that rich lays out


@dataclass(frozen=True)
class Row:
    """One layer, or a run of them; or a part beside the layers, which has no numbers.

    Attributes:
        slots, layers: first and last number, in the stack and in the donor.
        width: as it is shown.
    """

    name: str
    mixer: str
    mlp: str
    width: str
    parameters: int
    nbytes: int
    slots: tuple[int, int] | None = None
    layers: tuple[int, int] | None = None
    style: str | None = None

    def joins(self, below: Row) -> bool:
        """Whether it goes on with a run of layers of the same kind and size."""
        if not (self.slots and self.layers and below.slots and below.layers):
            return False
        num = below.slots[1] - below.slots[0] + 1
        return (
            (self.slots[0], self.layers[0]) == (below.slots[1] + 1, below.layers[1] + 1)
            and (self.name, self.mixer, self.mlp, self.width)
            == (below.name, below.mixer, below.mlp, below.width)
            and (self.parameters * num, self.nbytes * num) == (below.parameters, below.nbytes)
        )

    def up_to(self, last: Row) -> Row:
        """This run with one more layer."""
        assert self.slots
        assert self.layers
        assert last.slots
        assert last.layers
        return replace(
            self,
            slots=(self.slots[0], last.slots[1]),
            layers=(self.layers[0], last.layers[1]),
            parameters=self.parameters + last.parameters,
            nbytes=self.nbytes + last.nbytes,
        )


def layer_table(rows: Iterable[Row], *, stack: bool, full: bool = False) -> RenderableType:
    """The rows from the embedding upwards.

    Args:
        stack: show the number of the slot and the donor, too; else they are layers of one model.
        full: a row for each layer.
    """
    headings = [*(("slot", "from", "layer") if stack else ("layer",)), *WORDS[1:], *NUMBERS]
    above, shown = None, []
    for row in rows if full else _runs(rows):
        cells = [row.mixer, row.mlp, row.width]
        cells += [count(row.parameters), size(row.nbytes)] if row.parameters else ["-", "-"]
        name = "" if row.name == above and row.layers else row.name  # the one above says it
        first = [_span(row.slots), name, _span(row.layers)] if stack else [_span(row.layers)]
        shown.append(([*first, *cells], row.style))
        above = row.name
    if len(shown) > MOST_ROWS:
        return _lines(headings, shown)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(
            heading,
            justify="left" if heading in WORDS else "right",
            no_wrap=heading not in WORDS[1:],
            overflow="fold" if heading in WORDS[1:] else "ellipsis",
        )
    for line, style in shown:
        table.add_row(*line, style=style)
    return table


def _lines(headings: Sequence[str], rows: Sequence[tuple[Sequence[str], str | None]]) -> Text:
    """The same in lines that are not wrapped: rich takes half a millisecond for a row."""
    columns = zip(headings, *(cells for cells, _ in rows), strict=True)
    widths = [max(map(len, column)) for column in columns]
    text = Text(no_wrap=True)
    for cells, style in ((headings, "bold"), *rows):
        padded = [
            cell.ljust(width) if heading in WORDS else cell.rjust(width)
            for cell, width, heading in zip(cells, widths, headings, strict=True)
        ]
        text.append("  ".join(padded).rstrip() + "\n", style)
    text.right_crop()
    return text


def _runs(rows: Iterable[Row]) -> list[Row]:
    found: list[Row] = []
    for row in rows:
        if found and row.joins(found[-1]):
            found[-1] = found[-1].up_to(row)
        else:
            found.append(row)
    return found


def _span(numbers: tuple[int, int] | None) -> str:
    if numbers is None:
        return ""
    first, last = numbers
    return str(first) if first == last else f"{first}-{last}"
