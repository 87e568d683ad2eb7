"""The page of the report: its style sheet, and the blocks of HTML that it is built of. No torch.

Cells are HTML already: words that come from outside are escaped by whoever makes a cell of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

# The page cannot load anything, whatever a name in it may say.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; the title is plain text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[str], *, text: str = "") -> str:
    """A table that scrolls sideways where it must; `text` heads a last column of running text."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    head += f'<th class="text">{text}</th>' if text else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(name: str, cells: Iterable[str], *, tip: str = "", text: str = "") -> str:
    told = f' title="{escape(tip)}"' if tip else ""
    data = "".join(f"<td>{cell}</td>" for cell in cells)
    data += f'<td class="text">{text}</td>' if text else ""
    return f'<tr><th scope="row"{told}>{name}</th>{data}</tr>'


def group(name: str, num_columns: int) -> str:
    """A heading within a table."""
    return f'<tr class="group"><th colspan="{num_columns}">{name}</th></tr>'


def panels(figures: Iterable[str], *, uneven: bool = False) -> str:
    """Charts side by side, in line at the bottom; at the top where their heights are uneven."""
    return f'<div class="panels{" uneven" if uneven else ""}">{"".join(figures)}</div>'


def line_legend(entries: Iterable[tuple[str, str]]) -> str:
    """What lines stand for: name and class of each."""
    samples = (
        f'<span><svg viewBox="0 0 30 8"><path class="line {style}" d="M0 4H30"/></svg>'
        f"{escape(name)}</span>"
        for name, style in entries
    )
    return f'<div class="legend">{"".join(samples)}</div>'


def colour_legend(colours: Mapping[str, str]) -> str:
    """What colours stand for: the class of each name."""
    samples = (f'<span><i class="{c}"></i>{escape(name)}</span>' for name, c in colours.items())
    return f'<div class="legend">{"".join(samples)}</div>'


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """A list of words and what they mean; plain text."""
    items = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries)
    return f"<dl>{''.join(items)}</dl>"


CSS = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1c2024; --dim: #5d666f; --grid: #e3e6e9;
  --zero: #9aa3ab; --box: #f5f6f7; --mark: #1c2024;
  --d0: #0072b2; --d1: #d55e00; --d2: #009e73; --d3: #cc79a7; --d4: #56b4e9; --d5: #e69f00;
  --d6: #7f7f7f; --d7: #a5991a; }
@media (prefers-color-scheme: dark) { :root { --bg: #15181b; --fg: #e4e7ea; --dim: #98a2ab;
  --grid: #2b3136; --zero: #66707a; --box: #1d2125; --mark: #e4e7ea; --d0: #3c9bdc;
  --d1: #ec7424; --d2: #1db48a; --d6: #a0a0a0; --d7: #cfc13a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 64px; max-width: 1200px; background: var(--bg);
  color: var(--fg); font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  Arial, sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
h1 { font-size: 22px; margin: 0 0 2px; }
h2 { font-size: 19px; margin: 44px 0 2px; padding-top: 18px; border-top: 1px solid var(--zero); }
h3 { font-size: 15px; margin: 28px 0 4px; }
p { margin: 4px 0 10px; max-width: 82ch; }
a { color: inherit; }
.dim, figcaption span { color: var(--dim); }
ul { margin: 10px 0 14px; padding-left: 18px; max-width: 100ch; }
li { margin: 3px 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0; color: var(--dim); }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px;
  vertical-align: -1px; background: var(--c); }
.scroll { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: separate; border-spacing: 0; overflow-wrap: normal; }
th, td { padding: 4px 16px 4px 0; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--grid); }
th { font-weight: 600; }
th:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 21em; }
tbody th { position: sticky; left: 0; background: var(--bg); font-weight: 400; }
tr.group th { padding-top: 14px; color: var(--dim); }
.mini { display: flex; height: 14px; min-width: 130px; margin-top: 4px; }
.mini span { flex: 1 1 0; background: var(--c); border-left: 1px solid var(--bg); }
.mini.dense span { border-left: 0; }
.mini span.bridge { border-left: 3px solid var(--bg); }
ol { display: flex; flex-wrap: wrap; gap: 6px 3px; margin: 8px 0; padding: 0; list-style: none; }
ol li { min-width: 76px; margin: 0; padding: 3px 6px 4px; background: var(--box);
  border-top: 6px solid var(--c); font-size: 12px; line-height: 1.35; }
ol li.bridge { border-left: 3px double var(--fg); }
ol.dense li { min-width: 58px; }
ol b, ol span { display: block; }
ol span { color: var(--dim); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
  gap: 18px 24px; margin: 10px 0 6px; align-items: end; }
.uneven { align-items: start; }
figure { margin: 0; max-width: 440px; }
figcaption { font-size: 13px; line-height: 1.4; margin-bottom: 2px; }
figcaption span { display: block; font-size: 12px; }
svg { display: block; width: 100%; height: auto; }
.legend svg { display: inline; width: 30px; height: 8px; margin-right: 6px; vertical-align: 2px; }
svg text { font-size: 11px; fill: var(--dim); }
svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
.grid, .zero { stroke: var(--grid); fill: none; }
.zero { stroke: var(--zero); }
.bar, .dot { fill: var(--c, var(--dim)); }
.open { fill: var(--bg); stroke: var(--c, var(--dim)); stroke-width: 1.5; }
.stem { stroke: var(--grid); stroke-width: 2; }
.whisker { stroke: var(--mark); stroke-width: 1.4; fill: none; }
.flag { fill: var(--mark); }
.rule { stroke: var(--mark); stroke-dasharray: 2 3; }
.line { fill: none; stroke: var(--fg); stroke-width: 1.7; stroke-linejoin: round; }
.point { fill: var(--fg); }
.line.ridge { stroke-dasharray: 5 3; }
.point.ridge { fill: var(--bg); stroke: var(--fg); }
.line.on { stroke: var(--dim); stroke-width: 1; }
.point.on { display: none; }
.line.on1 { stroke-dasharray: 4 2; } .line.on2 { stroke-dasharray: 1.5 2; }
.line.on3 { stroke-dasharray: 7 2 1.5 2; } .line.on4 { stroke-dasharray: 9 3; }
.line.on5 { stroke-dasharray: 3 5; }
.hit { fill: transparent; }
.hit:hover, g:hover > .hit { fill: var(--fg); fill-opacity: .06; }
.d0 { --c: var(--d0); } .d1 { --c: var(--d1); } .d2 { --c: var(--d2); } .d3 { --c: var(--d3); }
.d4 { --c: var(--d4); } .d5 { --c: var(--d5); } .d6 { --c: var(--d6); } .d7 { --c: var(--d7); }
details { margin-top: 44px; padding-top: 14px; border-top: 1px solid var(--zero); }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(8em, max-content) 1fr; gap: 3px 18px; }
dt { color: var(--dim); }
dd { margin: 0; }
@media (max-width: 600px) { body { padding: 16px 12px 48px; } dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 6px; } th, td { padding-right: 14px; } tbody th { white-space: normal;
  min-width: 7.5em; } .mini { min-width: 96px; }
  td.text { white-space: nowrap; } }
"""
