"""Draws charts as inline SVG.

Each has a title and a description for readers that see no picture, axes with units, and labels
beside what they name. Colors come from classes of the page's style sheet, so that one chart fits
light, dark and print. A chart is 400 units wide, and its text 12 units high: that is legible at the
width of a phone, where a unit is a little less than a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from datarater.report.markup import Child, element, number
from datarater.report.page import BarRow, Curve, Curves, HeatMap, Histogram, Hue, IntervalRow
from datarater.report.scales import Scale, linear_ticks, short, spread
from datarater.report.visible import short_name

WIDTH = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 390.0, 42.0, 212.0
_HEIGHT = 256
_LETTER = 7.6  # width of a bold letter of 12 units, at most on average
_LEVELS = 7  # shades of a heat map
_NAME = 18  # letters of a name beside a curve
MAX_CURVES = 7  # the style sheet has one color more, for a baseline


def svg(
    title: str, description: str, height: float, *children: Child, width: float = WIDTH
) -> Element:
    """Returns a picture with a title and a description.

    Args:
        title: Name of the picture.
        description: What it shows, in a sentence with its main numbers.
        height: Height in units.
        *children: Content.
        width: Width in units.
    """
    return element(
        "svg",
        {
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "role": "img",
            "aria-label": f"{title}. {description}",
        },
        element("title", None, title),
        element("desc", None, description),
        *children,
    )


def label(
    x: float, y: float, text: str, kind: str = "", anchor: str = "start", *, turned: bool = False
) -> Element:
    """Returns text in a picture.

    Args:
        x: Position.
        y: Baseline.
        text: The text.
        kind: Class of the style sheet; "" for none.
        anchor: Which part of the text is at `x`: start, middle or end.
        turned: Whether the text runs upward.
    """
    attributes: dict[str, str | float | None] = {
        "x": x,
        "y": y,
        "class": kind or None,
        "text-anchor": None if anchor == "start" else anchor,
        "transform": f"rotate(-90 {number(x)} {number(y)})" if turned else None,
    }
    return element("text", attributes, text)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
    """Returns a straight line."""
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> Iterator[Element]:
    """Yields grid lines, ticks and names of the axes."""
    for value in y.ticks(5):
        yield line(_LEFT, y(value), x.end, y(value), "grid")
        yield label(_LEFT - 6, y(value) + 4, short(value), "tick", "end")
    for value in x.ticks(5):
        at = x(value)
        yield line(at, _BOTTOM, at, _BOTTOM + 4, "axis")
        # A label at the end would leave the picture.
        yield label(
            min(at, WIDTH - len(short(value)) * _LETTER / 2),
            _BOTTOM + 17,
            short(value),
            "tick",
            "middle",
        )
    yield line(_LEFT, _BOTTOM, x.end, _BOTTOM, "axis")
    yield label((_LEFT + x.end) / 2, _BOTTOM + 37, x_label, "name", "middle")
    yield label(12, (_TOP + _BOTTOM) / 2, y_label, "name", "middle", turned=True)


def histogram(figure: Histogram) -> Element:
    """Draws stacked bars, with the name of each part above them."""
    bins = range(len(figure.edges) - 1)
    totals = [sum(counts[index] for _, _, counts in figure.parts) for index in bins]
    x = Scale(figure.edges[0], figure.edges[-1], _LEFT, _RIGHT)
    y = Scale(0, max([*totals, 1]), _BOTTOM, _TOP)

    bars: list[Element] = []
    below = [0.0] * len(totals)
    for hue, _, counts in figure.parts:
        # One path for each part: a shape of its own for every bar would be many times as long.
        shape = []
        for index in bins:
            if counts[index] > 0:
                left, right = x(figure.edges[index]), x(figure.edges[index + 1])
                low, high = y(below[index]), y(below[index] + counts[index])
                right -= 0.8 if right - left > 3 else 0
                shape.append(
                    f"M{number(left)} {number(low)}V{number(high)}H{number(right)}V{number(low)}z"
                )
            below[index] += counts[index]
        bars.append(element("path", {"d": "".join(shape) or "M0 0", "class": f"fill-{hue}"}))

    # The parts lie side by side, the last one on the right: so do their names.
    names: list[Element] = []
    for place, (hue, name, _) in enumerate(figure.parts):
        right = place == len(figure.parts) - 1 and place > 0
        at = _RIGHT if right else _LEFT
        names.append(
            element(
                "rect",
                {
                    "x": at - 10 if right else at,
                    "y": 3,
                    "width": 10,
                    "height": 10,
                    "class": f"fill-{hue}",
                },
            )
        )
        names.append(
            label(at - 15 if right else at + 15, 12, name, "direct", "end" if right else "start")
        )

    described = "; ".join(name for _, name, _ in figure.parts)
    mark = _vertical_mark(x, figure.mark)
    return svg(
        figure.title,
        f"{described}. {figure.caption}",
        _HEIGHT,
        *_axes(x, y, figure.x_label, figure.y_label),
        *bars,
        *names,
        *mark,
    )


def _vertical_mark(x: Scale, mark: tuple[float, str] | None) -> list[Element]:
    if mark is None:
        return []
    value, name = mark
    at = x(value)
    half = len(name) * _LETTER / 2
    middle = min(max(at, _LEFT + half), _RIGHT - half)
    return [
        line(at, _TOP - 6, at, _BOTTOM, "mark"),
        label(middle, _TOP - 9, name, "direct", "middle"),
    ]


def heat_map(figure: HeatMap) -> Element:
    """Draws counts in shades of one color, darker for more."""
    x = Scale(figure.x_edges[0], figure.x_edges[-1], _LEFT, _RIGHT, log=True)
    y = Scale(figure.y_edges[0], figure.y_edges[-1], _BOTTOM, _TOP)
    most = max((count for row in figure.counts for count in row), default=0)

    shapes: list[list[str]] = [[] for _ in range(_LEVELS)]
    for row, counts in enumerate(figure.counts):
        top, bottom = y(figure.y_edges[row + 1]), y(figure.y_edges[row])
        for column, count in enumerate(counts):
            if count > 0:
                # The root shows the sparse ends of the distribution, too.
                level = min(int((count / most) ** 0.5 * _LEVELS), _LEVELS - 1)
                left, right = x(figure.x_edges[column]), x(figure.x_edges[column + 1])
                shapes[level].append(
                    f"M{number(left)} {number(bottom)}V{number(top)}H{number(right)}"
                    f"V{number(bottom)}z"
                )
    cells = [
        element("path", {"d": "".join(shape), "class": f"heat heat-{level}"})
        for level, shape in enumerate(shapes)
        if shape
    ]

    extra: list[Element] = []
    if figure.line is not None and len(figure.line[0]) > 1:
        points = [(x(a), y(b)) for a, b in figure.line[0]]
        extra.append(element("path", {"d": _path(points), "class": "median-edge"}))
        extra.append(element("path", {"d": _path(points), "class": "median"}))
        extra.append(line(_LEFT, 8, _LEFT + 16, 8, "median"))
        extra.append(label(_LEFT + 21, 12, figure.line[1], "direct"))
    if figure.mark is not None:
        value, name = figure.mark
        extra.append(line(_LEFT, y(value), _RIGHT, y(value), "mark"))
        extra.append(
            line(_RIGHT - len(name) * _LETTER - 20, 8, _RIGHT - len(name) * _LETTER - 4, 8, "mark")
        )
        extra.append(label(_RIGHT, 12, name, "direct", "end"))
    return svg(
        figure.title,
        figure.caption,
        _HEIGHT,
        *_axes(x, y, figure.x_label, figure.y_label),
        *cells,
        *extra,
    )


def curves(figure: Curves) -> Element:
    """Draws lines with their bands and their names at the right."""
    shown = [curve for curve in figure.curves if curve.x][:MAX_CURVES]
    widest = max((len(curve.name) for curve in shown), default=0)
    right = _RIGHT - min(widest, _NAME) * _LETTER - 10
    xs = [value for curve in shown for value in curve.x] or [1.0]
    x = Scale(min(xs), max(xs), _LEFT, right, log=figure.log_x and min(xs) > 0)

    # What happens at first would squeeze the part that matters.
    begin = min(xs) + figure.skip * (max(xs) - min(xs))
    lows = [value for curve in shown for value in (*curve.y, *curve.low)] or [0.0]
    highs = [
        value
        for curve in shown
        for values in (curve.y, curve.high)
        for at, value in zip(curve.x, values, strict=False)
        if at >= begin
    ] or [1.0]
    pad = (max(highs) - min(lows)) * 0.04 or 0.5
    y = Scale(min(lows) - pad, max(highs) + pad, _BOTTOM, 14)

    bands: list[Element] = []
    lines: list[Element] = []
    names: list[Element] = []
    ends = [y(curve.y[-1]) for curve in shown]
    places = spread(ends, 14, 20, _BOTTOM - 6)
    for index, curve in enumerate(shown, start=not figure.baseline):
        inside = _below(curve, y.high)
        if inside.low and inside.high:
            around = [
                *((x(at), y(value)) for at, value in zip(inside.x, inside.high, strict=True)),
                *(
                    (x(at), y(value))
                    for at, value in zip(reversed(inside.x), reversed(inside.low), strict=True)
                ),
            ]
            bands.append(element("path", {"d": _path(around) + "z", "class": f"band arm-{index}"}))
        points = [(x(at), y(value)) for at, value in zip(inside.x, inside.y, strict=True)]
        if points:
            lines.append(element("path", {"d": _path(points), "class": f"curve arm-{index}"}))

        end, place = ends[index - (not figure.baseline)], places[index - (not figure.baseline)]
        if abs(place - end) > 3:
            names.append(line(x(curve.x[-1]) + 1, end, right + 7, place, "leader"))
        name = short_name(curve.name, _NAME)
        names.append(label(right + 9, place + 4, name, f"direct arm-{index}"))

    zero = [line(_LEFT, y(0), right, y(0), "mark")] if y.low < 0 < y.high else []
    described = ", ".join(f"{curve.name} ends at {short(curve.y[-1])}" for curve in shown)
    return svg(
        figure.title,
        f"{described}. {figure.caption}",
        _HEIGHT,
        *_axes(x, y, figure.x_label, figure.y_label),
        *zero,
        *bands,
        *lines,
        *names,
    )


def _below(curve: Curve, top: float) -> Curve:
    """Returns the part of a curve from where it falls below the top of the figure."""
    first = next((place for place, value in enumerate(curve.y) if value <= top), None)
    if first is None:
        return Curve(curve.name, [], [])
    if first == 0:
        return curve
    share = (curve.y[first - 1] - top) / (curve.y[first - 1] - curve.y[first])

    def cut(values: Sequence[float]) -> Sequence[float]:
        if not values:
            return ()
        before, after = values[first - 1], values[first]
        return [before + share * (after - before), *values[first:]]

    return Curve(curve.name, *map(cut, (curve.x, curve.y, curve.low, curve.high)))


def division(parts: Sequence[tuple[str, int, Hue]]) -> Element:
    """Draws how numbers divide a whole, as one bar."""
    total = sum(count for _, count, _ in parts)
    described = ", ".join(f"{name} {count:,}" for name, count, _ in parts)

    at = 0.0
    pieces: list[Element] = []
    for name, count, hue in parts:
        width = 1000 * count / total if total else 0.0
        if width:
            pieces.append(
                element(
                    "rect",
                    {
                        "x": at,
                        "y": 0,
                        "width": max(width - 2, 1),
                        "height": 16,
                        "class": f"fill-{hue}",
                    },
                    element("title", None, f"{name}: {count:,}"),
                )
            )
        at += width

    picture = svg("Division", described, 16, *pieces, width=1000)
    picture.set("preserveAspectRatio", "none")
    picture.set("class", "division")
    return picture


def bar(row: BarRow, name: str, hue: Hue, mark: float | None) -> Element:
    """Draws one bar of a table, with the line that crosses all of them."""
    value = min(max(row.value or 0.0, 0.0), 1.0)
    children = [element("rect", {"x": 0, "y": 3, "width": 200, "height": 10, "class": "track"})]
    if value:
        children.append(
            element(
                "rect",
                {
                    "x": 0,
                    "y": 3,
                    "width": max(200 * value, 0.5),
                    "height": 10,
                    "class": f"fill-{hue}",
                },
            )
        )

    if mark is not None:
        at = min(max(200 * mark, 1), 199)
        children.append(line(at, 0, at, 16, "mark"))

    picture = svg(name, f"{value:.1%}", 16, *children, width=200)
    picture.set("preserveAspectRatio", "none")
    picture.set("class", "bar")
    return picture


def interval_scale(rows: Sequence[IntervalRow]) -> Scale:
    """Returns the common scale of intervals, which includes zero."""
    values = [0.0]
    for row in rows:
        values += [value for value in (row.mean, row.low, row.high) if value is not None]
    ticks = linear_ticks(min(values), max(values), 4)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return Scale(
        math.floor(min(values) / step - 0.1) * step,
        math.ceil(max(values) / step + 0.1) * step,
        0,
        200,
    )


def interval(row: IntervalRow, name: str, x: Scale, good: int) -> Element:
    """Draws one interval of a table: a dot, a line through it, and zero."""
    children = [line(x(0), 0, x(0), 20, "mark")]
    described = "no result"
    if row.mean is not None:
        described = short(row.mean)
        hue = Hue.REJECTED
        if row.low is not None and row.high is not None:
            described += f", interval {short(row.low)} to {short(row.high)}"
            # Blue or orange only where the interval excludes zero.
            if good and (row.low > 0 or row.high < 0):
                hue = Hue.KEPT if (row.mean > 0) == (good > 0) else Hue.DROPPED
            children.append(
                element(
                    "rect",
                    {
                        "x": x(row.low),
                        "y": 8,
                        "width": max(x(row.high) - x(row.low), 1),
                        "height": 4,
                        "class": f"fill-{hue}",
                    },
                )
            )
        children.append(
            element("circle", {"cx": x(row.mean), "cy": 10, "r": 5, "class": f"fill-{hue} dot"})
        )

    picture = svg(name, described, 20, *children, width=200)
    picture.set("class", "interval")
    return picture
