"""The tables of an analysis, as plain data for the terminal and for reports.

A table is {"title": str, "columns": [str, ...], "rows": [[str | number | null, ...], ...],
"caption": str}; its first column names the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datarater.meta_training.analysis.regression import PAPER, PAPER_COEFFICIENTS

Table = dict[str, Any]
Fields = Mapping[str, Any]

_MAX_ROWS = 20
_LEADING = 10
_WIDTH = 150


def tables_of(report: Fields) -> list[Table]:
    """Returns the tables of a report: those of the first rater, then those of all raters.

    Args:
        report: Content of `analysis.json`, without its tables.
    """
    rater = report["raters"][0]
    return [*_of_rater(report, rater), *_of_all(report)]


def _of_rater(report: Fields, rater: Fields) -> Iterator[Table]:
    regression = rater["regression"]
    if regression is not None:
        yield _explained(regression)
        yield _leading(regression)
    shares = rater["source_shares"]
    if len(shares) > 1:
        yield _shares(shares, report["discards"])
        yield _distributions(rater["distributions"], report["quantiles"])
    yield _length(rater["length"])
    for each in rater["disparity"]:
        yield _keep_rates(each)


def _of_all(report: Fields) -> Iterator[Table]:
    if len(report["raters"]) > 1:
        yield _comparison(report["raters"])
        yield _agreement(report["agreement"])
    if report["autocorrelation"]:
        yield _autocorrelation(report["autocorrelation"])


def _explained(regression: Fields) -> Table:
    alpha = PAPER["lasso_alpha"]
    rows = [
        [
            "least squares",
            regression["ols_r2"],
            regression["ols_r2_cross_validated"],
            PAPER["ols_r2"],
        ],
        [
            f"Lasso, penalty {alpha:g}",
            regression["lasso_paper_r2"],
            regression["lasso_paper_r2_cross_validated"],
            PAPER["lasso_r2"],
        ],
        [
            f"Lasso, penalty {regression['lasso_alpha']:.2g} by cross-validation",
            regression["lasso_r2"],
            regression["lasso_r2_cross_validated"],
            None,
        ],
        [
            "least squares, sources left out",
            None,
            regression["ols_r2_sources_left_out"],
            None,
        ],
        ["least squares, within sources", None, regression["within_sources_r2"], None],
        ["the source alone", regression["source_share"], None, None],
    ]

    used = sum(value != 0 for value in regression["lasso_paper"])
    return {
        "title": "Share of the scores' variance that features explain (R^2)",
        "columns": ["model", "fitted", "cross-validated", "paper"],
        "rows": [[row[0], *map(_rounded, row[1:])] for row in rows],
        "caption": (
            f"{regression['documents']:,} documents, {len(regression['features'])} features. The "
            f"Lasso with penalty {alpha:g} uses {used}; the paper's used "
            f"{PAPER['lasso_nonzero']} of {PAPER['features']}. "
            + (
                ""
                if regression["c4_correlation"] is None
                else "Correlation with passing C4's rules: "
                f"{regression['c4_correlation']:.2f}; paper: {PAPER['c4_correlation']:.2f}."
            )
        ).strip(),
    }


def _leading(regression: Fields) -> Table:
    columns = ("lasso_paper", "lasso", "ols", "spearman")
    rows = [
        [name, *(regression[column][index] for column in columns), PAPER_COEFFICIENTS.get(name)]
        for index, name in enumerate(regression["features"])
    ]

    rows.sort(key=lambda row: (-abs(row[1]), -abs(row[2])))
    shown = [*rows[:_LEADING], *(row for row in rows[_LEADING:] if row[0] in PAPER_COEFFICIENTS)]
    return {
        "title": "Leading features",
        "columns": [
            "feature",
            f"Lasso {PAPER['lasso_alpha']:g}",
            "Lasso",
            "least squares",
            "rank correlation",
            "paper",
        ],
        "rows": [[row[0], *map(_rounded, row[1:])] for row in shown],
        "caption": "Coefficients in standard deviations of the score per standard deviation of the "
        "feature; the paper's are those of its Lasso.",
    }


def _shares(shares: Mapping[str, Sequence[float]], discards: Sequence[float]) -> Table:
    largest = sorted(shares, key=lambda name: -shares[name][0])[:_MAX_ROWS]
    largest.sort(key=lambda name: -shares[name][-1] / max(shares[name][0], 1e-12))
    return {
        "title": "Share of each source in what is kept (%), by discard fraction",
        "columns": ["source", *(f"{discard:g}" for discard in discards)],
        "rows": [[name, *(round(100 * share, 1) for share in shares[name])] for name in largest],
        "caption": _cut(len(shares), len(largest), "largest sources"),
    }


def _distributions(rows: Sequence[Fields], quantiles: Sequence[float]) -> Table:
    largest = sorted(rows[1:], key=lambda row: -row["documents"])[:_MAX_ROWS]
    largest.sort(key=lambda row: row["quantiles"][len(quantiles) // 2])
    return {
        "title": "Scores by source, in standard deviations from the mean of all",
        "columns": ["source", "documents", *(f"{q:.0%}" for q in quantiles), "left tail"],
        "rows": [
            [
                "(all)" if row["group"] is None else row["group"],
                row["documents"],
                *(round(value, 2) for value in row["quantiles"]),
                None if row["left_tail"] is None else round(row["left_tail"], 2),
            ]
            for row in [rows[0], *largest]
        ],
        "caption": (
            "Left tail: distance from the median to the 1% quantile over that to the 99% quantile. "
            + _cut(len(rows) - 1, len(largest), "largest sources")
        ).strip(),
    }


def _length(length: Fields) -> Table:
    overall, within = length["spearman"], length["spearman_within_sources"]
    caption = "" if overall is None else f"Rank correlation of score and length: {overall:.2f}"
    if caption and within is not None:
        caption += f", within sources {within:.2f}"
    return {
        "title": "Scores by length",
        "columns": ["bytes", "documents", "mean score", "deviation"],
        "rows": [
            [
                row["bytes"],
                row["documents"],
                round(row["mean_score"], 2),
                round(row["deviation"], 2),
            ]
            for row in length["deciles"]
        ],
        "caption": caption,
    }


def _keep_rates(each: Fields) -> Table:
    rows = [
        [
            row["group"],
            row["documents"],
            round(row["rate"], 3),
            f"{row['low']:.3f} to {row['high']:.3f}",
            round(row["ratio"], 2),
            f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
            row["flag"] + ("" if row["certain"] or not row["flag"] else "?"),
        ]
        for row in each["groups"]
    ]

    half = _MAX_ROWS // 2
    shown = rows if len(rows) <= _MAX_ROWS else [*rows[:half], *rows[-half:]]
    cut = (
        "" if len(shown) == len(rows) else f" The {len(rows) - len(shown)} in between are left out."
    )
    return {
        "title": f"Keep rate by {each['field']}",
        "columns": [
            "group",
            "documents",
            "keep rate",
            "interval",
            "ratio",
            "interval",
            "past limit",
        ],
        "rows": shown,
        "caption": f"Overall {each['rate']:.3f}. Lowest over highest rate "
        f"{each['min_over_max']:.2f} ({each['min_over_max_low']:.2f} to "
        f"{each['min_over_max_high']:.2f}). Past the limit: a ratio below {1 / each['limit']:.2f} "
        f"or above {each['limit']:.2f}; with ? where the interval reaches the limit.{cut}",
    }


def _comparison(raters: Sequence[Fields]) -> Table:
    rows = []
    for rater in raters:
        regression = rater["regression"]
        if regression is None:
            rows.append([rater["name"], None, None, None, ""])
            continue

        leading = sorted(
            zip(regression["features"], regression["lasso_paper"], strict=True),
            key=lambda pair: -abs(pair[1]),
        )[:4]
        rows.append(
            [
                rater["name"],
                _rounded(regression["ols_r2_cross_validated"]),
                _rounded(regression["lasso_paper_r2_cross_validated"]),
                _rounded(regression["source_share"]),
                ", ".join(f"{name} {value:+.2f}" for name, value in leading if value),
            ]
        )

    return {
        "title": "All raters: R^2, cross-validated, and leading features",
        "columns": ["rater", "least squares", "Lasso 0.03", "source alone", "Lasso 0.03"],
        "rows": rows,
        "caption": "",
    }


def _agreement(pairs: Sequence[Fields]) -> Table:
    shares = list(pairs[0]["overlap"])
    return {
        "title": "Agreement between raters",
        "columns": [
            "first",
            "second",
            "rank correlation",
            "within sources",
            *(f"overlap of the kept {float(share):.0%}" for share in shares),
        ],
        "rows": [
            [
                pair["first"],
                pair["second"],
                _rounded(pair["spearman"]),
                _rounded(pair["spearman_within_sources"]),
                *(_rounded(pair["overlap"][share]) for share in shares),
            ]
            for pair in pairs
        ],
        "caption": "Two random choices overlap in the share that is kept.",
    }


def _autocorrelation(rows: Sequence[Fields]) -> Table:
    return {
        "title": "Scores over training",
        "columns": [
            "meta-step",
            "correlation with the export before",
            "with the last",
            "rank correlation with the last",
            "deviation",
        ],
        "rows": [
            [
                str(row["step"]),
                _rounded(row["with_previous"]),
                _rounded(row["with_last"]),
                _rounded(row["spearman_with_last"]),
                _rounded(row["deviation"]),
            ]
            for row in rows
        ],
        "caption": "In the paper, scores have settled once exports correlate above 0.95.",
    }


def _cut(count: int, shown: int, what: str) -> str:
    return "" if count == shown else f"The {shown} {what} of {count}."


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def print_tables(tables: Sequence[Table]) -> None:
    """Prints tables to the terminal.

    Args:
        tables: Tables in the form that the module describes.
    """
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    # A fixed width where there is no terminal, so that a log contains the whole table.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in tables:
        shown = RichTable(title=escape(table["title"]), title_justify="left")
        for index, column in enumerate(table["columns"]):
            shown.add_column(escape(column), justify="right" if index else "left")
        columns = [_cells(column) for column in zip(*table["rows"], strict=True)]
        for row in zip(*columns, strict=True):
            shown.add_row(*map(escape, row))
        console.print(shown)
        if table["caption"]:
            console.print(table["caption"], highlight=False, soft_wrap=True, markup=False)
        console.print()


def _cells(values: Sequence[Any]) -> list[str]:
    """Returns the cells of a column, its numbers with equally many decimals."""
    decimals = max(
        (len(f"{value:g}".partition(".")[2]) for value in values if isinstance(value, float)),
        default=0,
    )

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:,.{decimals}f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    return [cell(value) for value in values]
