"""Renders a page as one self-contained HTML file.

The file runs no script and loads nothing: its Content-Security-Policy allows its own style sheet,
by digest, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import singledispatch
from xml.etree.ElementTree import Element

from datarater.rater_model.counted import counted
from datarater.report import charts
from datarater.report.markup import document, element, style_sheet
from datarater.report.page import (
    BarTable,
    Block,
    Curves,
    Excerpt,
    Excerpts,
    Facts,
    HeatMap,
    Histogram,
    Intervals,
    Note,
    Page,
    Section,
    Table,
    Tiles,
)
from datarater.report.scales import short
from datarater.report.style import CSS

_MANY_COLUMNS = 6


def render(page: Page) -> str:
    """Returns the HTML of a page."""
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": _policy(CSS)}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "referrer", "content": "no-referrer"}),
        element("meta", {"name": "robots", "content": "noindex"}),
        element("title", None, page.title),
        style_sheet(CSS),
    )
    main = element(
        "main",
        None,
        element("h1", None, page.title),
        element("p", {"class": "lead"}, page.lead),
        _warnings(page.warnings),
        *(_section(section, titled=index > 0) for index, section in enumerate(page.sections)),
        element("footer", None, *(element("p", None, line) for line in page.foot)),
    )
    return document(element("html", {"lang": "en"}, head, element("body", None, main)))


def _policy(css: str) -> str:
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _warnings(warnings: Sequence[str]) -> Element:
    if not warnings:
        return element("p", {"class": "fine"}, "No warnings.")
    count = counted(len(warnings), "warning")
    return element(
        "section",
        {"class": "warnings"},
        element("h2", None, count),
        element("ul", None, *(element("li", None, warning) for warning in warnings)),
    )


def _section(section: Section, *, titled: bool) -> Element:
    # Lists of documents stand side by side, to be compared.
    kind = "columns" if any(isinstance(one, Excerpts) for one in section.blocks) else "blocks"
    return element(
        "section",
        None if titled else {"aria-label": section.title},
        element("h2", None, section.title) if titled else None,
        element("div", {"class": kind}, *(_block(block) for block in section.blocks)),
    )


@singledispatch
def _block(block: Block) -> Element:
    raise TypeError(f"a page has no block like {block!r}")


@_block.register
def _(block: Tiles) -> Element:
    tiles = [
        element(
            "div",
            {"class": f"tile {tile.hue or ''}".strip()},
            element("dt", None, tile.label),
            element("dd", {"class": "value"}, tile.value),
            element("dd", {"class": "note"}, tile.note) if tile.note else None,
        )
        for tile in block.tiles
    ]
    whole = charts.division(block.parts) if block.parts else None
    return element("div", {"class": "wide"}, element("dl", {"class": "tiles"}, *tiles), whole)


@_block.register
def _(block: Facts) -> Element:
    rows: list[Element] = []
    for name, value in block.rows:
        rows += [element("dt", None, name), element("dd", None, value)]
    return element("dl", {"class": "facts wide"}, *rows)


@_block.register
def _(block: Note) -> Element:
    if not block.title:
        return element("p", {"class": "wide"}, block.text)
    return element(
        "section", None, element("h3", None, block.title), element("p", None, block.text)
    )


@_block.register
def _(block: Table) -> Element:
    return _tabular(
        block.title,
        block.caption,
        [*map(_heading, block.columns)],
        [_cells(row, block.columns) for row in block.rows],
        # The cells of many columns may wrap; otherwise the table would be wider than the page.
        "cards many" if len(block.columns) > _MANY_COLUMNS else "cards",
    )


@_block.register
def _(block: BarTable) -> Element:
    scale = element(
        "span", {"class": "ends"}, element("span", None, "0%"), element("span", None, "100%")
    )
    heading = element("th", {"scope": "col", "class": "picture"}, block.bar, scale)
    mark = None if block.mark is None else block.mark[0]
    rows = []
    for row in block.rows:
        picture = None
        if row.value is not None:
            picture = charts.bar(row, f"{block.bar}, {row.cells[0]}", block.hue, mark)
        rows.append([*_cells(row.cells), element("td", {"class": "picture"}, picture)])
    caption = block.caption
    if block.mark is not None:
        caption = f"{caption} Dashed line: {block.mark[1]}.".strip()
    return _tabular(block.title, caption, [*map(_heading, block.columns), heading], rows, "bars")


@_block.register
def _(block: Intervals) -> Element:
    x = charts.interval_scale(block.rows)
    ends = element(
        "span",
        {"class": "ends"},
        element("span", None, short(x.low)),
        element("span", None, short(x.high)),
    )
    heading = element("th", {"scope": "col", "class": "picture"}, block.bar, ends)
    rows = [
        [
            *_cells(row.cells, block.columns),
            element(
                "td",
                {"class": "picture"},
                charts.interval(row, f"{block.bar}, {row.cells[0]}", x, block.good),
            ),
        ]
        for row in block.rows
    ]
    return _tabular(
        block.title,
        f"{block.caption} Dashed line: zero.".strip(),
        [*map(_heading, block.columns), heading],
        rows,
        "cards",
    )


@_block.register
def _(block: Histogram) -> Element:
    rows = [
        [
            f"{short(low)} to {short(high)}",
            *(f"{counts[index]:,.0f}" for _, _, counts in block.parts),
        ]
        for index, (low, high) in enumerate(zip(block.edges, block.edges[1:], strict=False))
    ]
    columns = [block.x_label, *(name for _, name, _ in block.parts)]
    return _figure(block.title, block.caption, charts.histogram(block), columns, rows)


@_block.register
def _(block: HeatMap) -> Element:
    line = () if block.line is None else block.line[0]
    rows = [[short(x), short(y)] for x, y in line]
    columns = [block.x_label, "" if block.line is None else block.line[1]]
    return _figure(block.title, block.caption, charts.heat_map(block), columns, rows)


@_block.register
def _(block: Curves) -> Element:
    rows = []
    for curve in block.curves:
        low = curve.low or curve.y
        high = curve.high or curve.y
        for x, y, bottom, top in zip(curve.x, curve.y, low, high, strict=True):
            rows.append([curve.name, short(x), f"{y:.4g}", f"{bottom:.4g} to {top:.4g}"])
    columns = ["curve", block.x_label, block.y_label, "band"]
    return _figure(block.title, block.caption, charts.curves(block), columns, rows)


@_block.register
def _(block: Excerpts) -> Element:
    return element(
        "section",
        None,
        element("h3", None, block.title),
        element("p", {"class": "caption"}, block.caption) if block.caption else None,
        element("ol", {"class": "excerpts"}, *map(_excerpt, block.items))
        if block.items
        else element("p", {"class": "soft"}, "None."),
    )


def _excerpt(item: Excerpt) -> Element:
    facts = [element("span", None, f"{name} {value}".strip()) for name, value in item.facts.items()]
    head = element(
        "p",
        {"class": "excerpt-head"},
        element("span", {"class": "score"}, _score(item.score)),
        element("span", {"class": f"badge {item.hue}"}, item.decision),
        *facts,
    )
    if item.text is None:
        return element("li", None, head, element("p", {"class": "soft"}, item.reason))
    left = counted(item.cut, "more character") if item.cut else ""
    return element(
        "li",
        None,
        head,
        element("div", {"class": "text", "dir": "auto"}, item.text + ("…" if item.cut else "")),
        element("p", {"class": "soft"}, left) if left else None,
    )


def _score(value: float) -> str:
    """Returns a score with as many decimals as those around it."""
    text = f"{value:,.3f}" if abs(value) >= 1 else f"{value:#.4g}"
    return text.replace("-", "\u2212")


def _heading(text: str) -> Element:
    return element("th", {"scope": "col"}, text)


def _cells(row: Sequence[str], columns: Sequence[str] = ()) -> list[Element]:
    first = element("th", {"scope": "row", "dir": "auto"}, row[0])
    if not columns:
        return [first, *(element("td", None, cell) for cell in row[1:])]
    # On a narrow screen each row is a card, whose values need their names.
    named = zip(columns[1:], row[1:], strict=True)
    return [first, *(element("td", {"data-name": name}, cell) for name, cell in named)]


def _table(headings: Sequence[Element], rows: Sequence[Sequence[Element]]) -> Element:
    return element(
        "div",
        {"class": "scroll"},
        element(
            "table",
            None,
            element("thead", None, element("tr", None, *headings)),
            element("tbody", None, *(element("tr", None, *row) for row in rows)),
        ),
    )


def _tabular(
    title: str,
    caption: str,
    headings: Sequence[Element],
    rows: Sequence[Sequence[Element]],
    kind: str = "",
) -> Element:
    return element(
        "figure",
        {"class": f"wide {kind}" if kind else None},
        _caption(title, caption),
        _table(headings, rows),
    )


def _figure(
    title: str,
    caption: str,
    picture: Element,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> Element:
    """Returns a picture with its caption, and its numbers as a table that opens on demand."""
    numbers = None
    if rows:
        numbers = element(
            "details",
            None,
            element("summary", None, "Numbers of this figure"),
            _table([*map(_heading, columns)], [_cells(row) for row in rows]),
        )
    return element("figure", None, _caption(title, caption), picture, numbers)


def _caption(title: str, caption: str) -> Element:
    return element(
        "figcaption",
        None,
        element("strong", None, title),
        element("p", {"class": "caption"}, caption) if caption else None,
    )
