"""Charts draw what they are given, at any scale."""

import itertools
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from datarater.report import charts
from datarater.report.page import Curve, Curves, HeatMap, Histogram, Hue, IntervalRow
from datarater.report.scales import Scale, linear_ticks, short, spread

FINITE = st.floats(-1e30, 1e30)


@given(FINITE, FINITE, st.integers(1, 10))
def test_ticks_are_round_and_lie_in_the_range(one: float, other: float, count: int) -> None:
    low, high = sorted((one, other))
    ticks = linear_ticks(low, high, count)
    slack = (high - low) * 1e-6
    assert len(ticks) <= 2.5 * count + 2
    assert all(low - slack <= tick <= high + slack for tick in ticks)


@given(st.floats(1e-6, 1e6), st.floats(1.1, 1e12))
def test_a_logarithmic_scale_has_ticks(low: float, factor: float) -> None:
    ticks = Scale(low, low * factor, 0, 100, log=True).ticks(5)
    assert len(ticks) <= 10
    if factor >= 10:
        assert ticks


@given(FINITE, FINITE, FINITE)
def test_positions_stay_between_the_ends(one: float, other: float, value: float) -> None:
    low, high = sorted((one, other))
    assert -1e-9 <= Scale(low, high, 0, 100)(value) <= 100 + 1e-9


@given(FINITE)
def test_short_numbers_are_short(value: float) -> None:
    assert len(short(value)) <= 10


@given(st.lists(st.floats(0, 200), max_size=8))
def test_labels_do_not_overlap(positions: list[float]) -> None:
    placed = sorted(spread(positions, 14, 20, 200))
    assert all(b - a >= 14 - 1e-6 for a, b in itertools.pairwise(placed))
    assert all(place <= 200 for place in placed)


def heights(picture: str, hue: Hue) -> list[float]:
    """Returns the heights of the bars of a hue."""
    path = re.search(f'd="([^"]*)" class="fill-{hue}"', picture)
    assert path is not None
    bars = re.findall(r"M[-\d.]+ ([-\d.]+)V([-\d.]+)H", path[1])
    return [float(low) - float(high) for low, high in bars]


def as_text(element: ElementTree.Element) -> str:
    return ElementTree.tostring(element, encoding="unicode")


def test_bars_are_as_high_as_their_counts_and_stand_on_each_other() -> None:
    parts = [(Hue.DROPPED, "dropped", [4, 2, 0]), (Hue.KEPT, "kept", [0, 2, 8])]
    picture = as_text(charts.histogram(Histogram("t", [0, 1, 2, 3], parts, "x", "y")))
    full = heights(picture, Hue.KEPT)[-1]
    assert heights(picture, Hue.DROPPED) == [full / 2, full / 4]
    assert heights(picture, Hue.KEPT) == [full / 4, full]


def test_a_darker_cell_has_more_documents() -> None:
    figure = HeatMap("t", [1, 10, 100], [0, 1], [[1, 100]], "x", "y")
    picture = as_text(charts.heat_map(figure))
    assert "heat-0" in picture
    assert "heat-6" in picture


def test_figures_without_data_are_drawn() -> None:
    charts.histogram(Histogram("t", [0, 1], [(Hue.KEPT, "kept", [0])], "x", "y"))
    charts.curves(Curves("t", [], "x", "y"))
    charts.heat_map(HeatMap("t", [1, 2], [0, 1], [[0]], "x", "y"))
    charts.curves(Curves("t", [Curve("one", [5], [2.0])], "x", "y"))
    charts.division([("kept", 0, Hue.KEPT)])


def test_only_an_interval_that_excludes_zero_has_a_color() -> None:
    rows = [
        IntervalRow(["better"], -0.2, -0.3, -0.1),
        IntervalRow(["worse"], 0.2, 0.1, 0.3),
        IntervalRow(["unclear"], -0.1, -0.3, 0.1),
        IntervalRow(["one seed"], -0.4),
    ]
    scale = charts.interval_scale(rows)
    colors = [as_text(charts.interval(row, "name", scale, -1)) for row in rows]
    assert ["fill-kept" in one for one in colors] == [True, False, False, False]
    assert ["fill-dropped" in one for one in colors] == [False, True, False, False]
