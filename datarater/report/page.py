"""What a report shows, as plain data: a page of sections, a section of blocks.

Nothing here is escaped or formatted for HTML; `datarater.report.html` does both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum


class Hue(StrEnum):
    """The meaning of a color. Each hue also differs in lightness, for print and color blindness."""

    KEPT = "kept"
    DROPPED = "dropped"
    REJECTED = "rejected"
    NEUTRAL = "neutral"


@dataclasses.dataclass(frozen=True)
class Tile:
    """One number that is read at a glance."""

    label: str
    value: str
    note: str = ""
    hue: Hue | None = None


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A row of numbers, above one bar that shows how they divide a whole.

    Attributes:
        tiles: The numbers.
        parts: Name, number and hue of each part of the whole; none draws no bar.
    """

    tiles: Sequence[Tile]
    parts: Sequence[tuple[str, int, Hue]] = ()


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and their values."""

    rows: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Note:
    """A paragraph, below a title if it has one."""

    text: str
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; every column but the first is aligned as numbers.

    Attributes:
        title: What the table shows.
        columns: Headings.
        rows: Cells of each row.
        caption: Explanation below the title; "" for none.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class BarRow:
    """A row of a `BarTable`.

    Attributes:
        cells: Text of each column.
        value: Length of the bar, from 0 to 1; None for a row without one.
    """

    cells: Sequence[str]
    value: float | None


@dataclasses.dataclass(frozen=True)
class BarTable:
    """A table with a bar in each row, all on the axis from 0 to 100%.

    Attributes:
        title: What the table shows.
        columns: Headings of the text columns.
        bar: Heading of the column of bars.
        rows: The rows.
        hue: Hue of the bars.
        mark: Position of a line across all bars, from 0 to 1, and its label; None for none.
        caption: Explanation below the title; "" for none.
    """

    title: str
    columns: Sequence[str]
    bar: str
    rows: Sequence[BarRow]
    hue: Hue = Hue.NEUTRAL
    mark: tuple[float, str] | None = None
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Stacked bars over adjacent intervals.

    Attributes:
        title: What the figure shows.
        edges: Ends of the B bins, B + 1 ascending numbers.
        parts: Hue, label and B nonnegative counts of each part, the lowest of the stack first.
        x_label: Name of the quantity, with its unit.
        y_label: Name of the counts.
        mark: Position of a vertical line and its label; None for none.
        caption: Explanation below the title; "" for none.
    """

    title: str
    edges: Sequence[float]
    parts: Sequence[tuple[Hue, str, Sequence[float]]]
    x_label: str
    y_label: str
    mark: tuple[float, str] | None = None
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Counts over two quantities, the horizontal one on a logarithmic scale.

    Attributes:
        title: What the figure shows.
        x_edges: Ends of the X columns, positive and ascending.
        y_edges: Ends of the Y rows, ascending.
        counts: Y rows of X counts, the lowest row first.
        x_label: Name of the horizontal quantity, with its unit.
        y_label: Name of the vertical quantity.
        line: Points of a line, and its label at the end; None for none.
        mark: Position of a horizontal line and its label; None for none.
        caption: Explanation below the title; "" for none.
    """

    title: str
    x_edges: Sequence[float]
    y_edges: Sequence[float]
    counts: Sequence[Sequence[float]]
    x_label: str
    y_label: str
    line: tuple[Sequence[tuple[float, float]], str] | None = None
    mark: tuple[float, str] | None = None
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line with a band.

    Attributes:
        name: Label at the line's end.
        x: Ascending positions.
        y: Value at each position.
        low: Lower end of the band at each position; empty for no band.
        high: Upper end of the band at each position; empty for no band.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Curves:
    """Lines over one quantity.

    Attributes:
        title: What the figure shows.
        curves: The lines.
        x_label: Name of the horizontal quantity, with its unit.
        y_label: Name of the vertical quantity, with its unit.
        log_x: Whether the horizontal scale is logarithmic.
        baseline: Whether the first line is what the others are compared with.
        skip: Share of the horizontal range, from its start, whose values may lie above the figure.
        caption: Explanation below the title; "" for none.
    """

    title: str
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    log_x: bool = False
    baseline: bool = False
    skip: float = 0.0
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class IntervalRow:
    """A row of an `Intervals` block.

    Attributes:
        cells: Text of each column.
        mean: Middle of the interval; None for a row without one.
        low: Lower end; None for a mean without an interval.
        high: Upper end; None for a mean without an interval.
    """

    cells: Sequence[str]
    mean: float | None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Intervals:
    """A table with an interval in each row, all on one axis that includes zero.

    Attributes:
        title: What the table shows.
        columns: Headings of the text columns.
        bar: Heading of the column of intervals.
        rows: The rows.
        good: Which side of zero is an improvement: -1 or 1; 0 for neither.
        caption: Explanation below the title; "" for none.
    """

    title: str
    columns: Sequence[str]
    bar: str
    rows: Sequence[IntervalRow]
    good: int = 0
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A document.

    Attributes:
        score: Its score.
        decision: What was decided, such as "kept".
        hue: Hue of the decision.
        facts: Further facts, such as its source and length.
        text: Its beginning; None if it could not be read.
        cut: Number of characters that were left out at the end.
        reason: Why there is no text; "" if there is.
    """

    score: float
    decision: str
    hue: Hue
    facts: Mapping[str, str]
    text: str | None
    cut: int = 0
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Excerpts:
    """A list of documents."""

    title: str
    items: Sequence[Excerpt]
    caption: str = ""


Block = (
    Tiles | Facts | Note | Table | BarTable | Histogram | HeatMap | Curves | Intervals | Excerpts
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what follows it."""

    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Heading of the page.
        lead: What was asked for, in a sentence.
        warnings: What a reader must know before anything else, in sentences.
        sections: The sections, in order. The first has no visible heading.
        foot: Where the page comes from, such as the run folder and the time.
    """

    title: str
    lead: str
    warnings: Sequence[str]
    sections: Sequence[Section]
    foot: Sequence[str] = ()
