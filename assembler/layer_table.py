"""A stack as a table: a row for each run of layers that are alike, with the sum of their sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.table import Table

from hybridize.console import count, size


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


def layer_table(rows: Iterable[Row], *, stack: bool, full: bool = False) -> Table:
    """The rows from the embedding upwards.

    Args:
        stack: show the number of the slot and the donor, too; else they are layers of one model.
        full: a row for each layer.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("slot", "from", "layer") if stack else ("layer",):
        table.add_column(heading, justify="left" if heading == "from" else "right", no_wrap=True)
    for heading in ("mixer", "mlp"):
        table.add_column(heading, overflow="fold")
    for heading in ("width", "parameters", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    above = None
    for row in rows if full else _runs(rows):
        cells = [row.mixer, row.mlp, row.width]
        cells += [count(row.parameters), size(row.nbytes)] if row.parameters else ["-", "-"]
        name = "" if row.name == above and row.layers else row.name  # the one above says it
        first = [_span(row.slots), name, _span(row.layers)] if stack else [_span(row.layers)]
        table.add_row(*first, *cells, style=row.style)
        above = row.name
    return table


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
