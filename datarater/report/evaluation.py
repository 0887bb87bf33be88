"""The report of an evaluation, from the `evaluation.json` that `datarater evaluate` writes.

Of the file's fields only `arms` is needed, and of an arm only its name: what is absent is not
shown. Results that have no figure of their own are shown as they are where the file lists them
under `tables`:

    {"tables": [{"title": str, "columns": [str, ...], "rows": [[str | number | null, ...], ...],
                 "caption": str}]}

The first column names the row; the caption may be absent. `leads` has the paired differences of the
rater from other arms: objects with `arm`, `keep`, `rater_keep` and `difference`. An arm is an
object with these fields, all but the first optional:

| field | meaning |
|---|---|
| `arm`, `keep` | its name, and the share of the pool that it keeps |
| `mean_final_loss` | mean over the seeds |
| `curves` | for each seed, pairs of a step and a loss |
| `difference`, `difference_from_random` | `mean`, `low`, `high`, `verdict`, paired by seed |
| `by_source`, `difference_by_source` | mean loss, and the difference, by source |
| `gain` | `mean`, `low`, `high`, `at_most`, `reached`, `seeds` |
| `net` | `gain`, `break_even_parameters`, `scoring_flops_per_token`, `by_parameters` |
| `kept_documents`, `kept_bytes`, `kept_tokens`, `passes`, `seconds` | what it kept and took |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits
from datarater.rater_model.counted import counted
from datarater.report import EVALUATION_FILE
from datarater.report.charts import MAX_CURVES
from datarater.report.html import render
from datarater.report.page import (
    Block,
    Curve,
    Curves,
    Facts,
    Hue,
    IntervalRow,
    Intervals,
    Note,
    Page,
    Section,
    Table,
    Tile,
    Tiles,
)
from datarater.report.scales import short
from datarater.report.visible import short_name

REPORT_FILE = "report.html"
MAX_SOURCES = 40
_BASELINE = "unfiltered"
_RATER = "rater"
_RANDOM = ("random", "random_again")
_Fields = Mapping[str, Any]
_NONE: _Fields = {}


def write_evaluation_report(folder: str) -> str:
    """Writes the report of an evaluation beside its `evaluation.json`; returns its path.

    Raises:
        CountsError: The file is missing or is not the result of an evaluation.
        OSError: A file cannot be read or written.
    """
    path = f"{folder}/{EVALUATION_FILE}"
    data = commits.read_if_there(path)
    if data is None:
        raise CountsError(f"{path} is missing: the evaluation is not finished")
    try:
        page = evaluation_page(orjson.loads(data))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CountsError(f"{path} is not the result of an evaluation: {error!r}") from error
    commits.replace(f"{folder}/{REPORT_FILE}", render(page).encode())
    return f"{folder}/{REPORT_FILE}"


def evaluation_page(fields: _Fields) -> Page:
    """Returns the report of an evaluation as plain data.

    Args:
        fields: Content of `evaluation.json`; see this module's description.

    Raises:
        KeyError: There are no arms, or one has no name.
    """
    arms: Sequence[_Fields] = fields["arms"]
    main = _main_arm(fields)

    sections = [
        Section("In short", [_tiles(fields, main)]),
        Section("Against the whole pool", [_differences(fields), *_notes(fields)]),
        Section("Compute saved", _gains(arms)),
        Section("Curves", [*_loss_curves(fields), *_sweeps(arms), *_net_curves(arms)]),
        Section("By source", _by_source(arms, main)),
        Section("Further results", list(_tables(fields))),
        Section("What each arm used", _uses(arms)),
        Section("Settings", [Facts(list(_settings(fields)))]),
    ]

    return Page(
        title="What is the rater worth?" if _is_rater(main) else "What is filtering worth?",
        lead=_lead(fields, main),
        warnings=[*fields.get("warnings", ()), *_warnings(fields, main)],
        sections=[section for section in sections if section.blocks],
        foot=[
            f"Made by datarater {fields.get('datarater', '?')}.",
            "This page is one file. It runs no script and loads nothing.",
        ],
    )


# The arms.


def _name(row: _Fields) -> str:
    name = short_name(row["arm"])
    return name if row.get("keep", 1) == 1 else f"{name} {_share(row['keep'])}"


def _is_rater(row: _Fields | None) -> bool:
    return row is not None and row["arm"] == _RATER


def _difference(row: _Fields) -> _Fields:
    return row.get("difference") or _NONE


def _compared(fields: _Fields) -> list[_Fields]:
    """Returns each arm that is compared with the whole pool, at its best share, the best first.

    The best share and its interval are those of `best_fractions` where it names the arm: the file
    chooses on other documents, and its intervals are widened for the choice.
    """
    chosen = {row["arm"]: row for row in fields.get("best_fractions") or ()}
    best: dict[str, _Fields] = {}
    for row in sorted(
        (row for row in fields["arms"] if _difference(row).get("mean") is not None),
        key=lambda row: row["difference"]["mean"],
    ):
        best.setdefault(row["arm"], row)
        choice = chosen.get(row["arm"])
        if choice and row.get("keep") == choice.get("keep"):
            best[row["arm"]] = {**row, "difference": choice["difference"]}
    return sorted(best.values(), key=lambda row: row["difference"]["mean"])


def _main_arm(fields: _Fields) -> _Fields | None:
    """Returns the arm that the page is about: the rater, else the best arm."""
    rows = _compared(fields)
    for wanted in (
        lambda row: row["arm"] == _RATER,
        lambda row: row["arm"] not in _RANDOM,
        lambda row: True,
    ):
        for row in filter(wanted, rows):
            return row
    return None


def _best_rival(fields: _Fields, main: _Fields) -> _Fields | None:
    """Returns the best of the other filters."""
    rivals = [row for row in _compared(fields) if row["arm"] not in (main["arm"], *_RANDOM)]
    return rivals[0] if rivals else None


# What comes first.


def _seeds(fields: _Fields) -> str:
    seeds = fields.get("seeds")
    return "" if seeds is None else counted(seeds, "seed")


def _lead(fields: _Fields, main: _Fields | None) -> str:
    size = "" if fields.get("parameters") is None else f" of {short(fields['parameters'])}"
    models = f"Language models{size} parameters" if size else "Language models"
    over = f" ({_seeds(fields)})" if fields.get("seeds") is not None else ""
    if main is None:
        return f"{models} trained on the whole pool{over}."
    difference = main["difference"]
    less = abs(difference["mean"])
    ends = "at the same validation loss as"
    if less:
        ends = f"{less:.4f} {'lower' if difference['mean'] < 0 else 'higher'} in validation loss "
        ends += "than"
    return (
        f"{models} trained on what {_name(main)} keeps end {ends} those trained on the whole "
        f"pool{over}. Verdict: {difference.get('verdict', 'none')}."
    )


def _warnings(fields: _Fields, main: _Fields | None) -> Iterator[str]:
    if main is None:
        yield "No arm is compared with the whole pool."
        return
    verdict = main["difference"].get("verdict")
    if verdict == "worse":
        yield f"{_name(main)} is worse than no filter at all."
    elif verdict != "better":
        seen = fields.get("smallest_detectable")
        limit = "" if seen is None else f" These seeds detect {seen:.4f} in 4 of 5 evaluations."
        yield f"{_name(main)} is not shown to be better than the whole pool.{limit}"

    rival = _best_rival(fields, main)
    if rival is not None:
        yield from _lost_leads(fields, main, rival)
    gain, net = main.get("gain") or _NONE, main.get("net") or _NONE
    if net.get("gain") is not None and net["gain"] < 0 < (gain.get("mean") or 0):
        yield (
            f"Scoring costs more than {_name(main)} saves in training a language model of this "
            f"size: {_share(net['gain'])} net."
        )
    if gain and gain.get("mean") is None:
        yield f"{_name(main)}: {_missed(gain)}, so there is no compute gain."


def _lost_leads(fields: _Fields, main: _Fields, rival: _Fields) -> Iterator[str]:
    """Yields a warning unless the rater is shown to be better than its best rival."""
    pair = (rival["arm"], rival["keep"], main["keep"])
    leads = {
        (lead["arm"], lead["keep"], lead["rater_keep"]): lead for lead in fields.get("leads", ())
    }
    if pair in leads:
        difference = leads[pair]["difference"]
        by = f"difference {_with_ends(difference, _signed)}"
        if difference["verdict"] == "worse":
            yield f"{_name(rival)} is better than {_name(main)}: {by}."
        elif difference["verdict"] != "better":
            yield f"{_name(main)} is not shown to be better than {_name(rival)}: {by}."
        return

    # The means alone, where the file has no paired difference of the two.
    apart = main["difference"]["mean"] - rival["difference"]["mean"]
    if apart > 0:
        yield f"{_name(rival)} ends lower than {_name(main)}, by {apart:.4f}."


def _tiles(fields: _Fields, main: _Fields | None) -> Tiles:
    tiles = []
    if main is not None:
        difference = main["difference"]
        verdict = difference.get("verdict", "")
        hue = {"better": Hue.KEPT, "worse": Hue.DROPPED}.get(verdict, Hue.REJECTED)
        tiles += [
            Tile(
                f"{_name(main)}: difference in loss",
                _signed(difference["mean"]),
                _ends(difference) or "one seed: no interval",
                hue,
            ),
            Tile("Verdict", verdict or "none", _confidence(fields), hue),
            *_gain_tiles(main),
        ]
        rival = _best_rival(fields, main)
        if rival is not None:
            note = f"{_name(rival)} {_ends(rival['difference'])}".strip()
            tiles.append(Tile("Best rival", _signed(rival["difference"]["mean"]), note))

    if fields.get("smallest_detectable") is not None:
        tiles.append(
            Tile(
                "Detectable",
                f"{fields['smallest_detectable']:.4f}",
                "difference found in 4 of 5 evaluations",
            )
        )
    return Tiles(tiles)


def _gain_tiles(main: _Fields) -> Iterator[Tile]:
    gain, net = main.get("gain") or _NONE, main.get("net") or _NONE
    if gain.get("mean") is not None:
        yield Tile("Compute saved", _share(gain["mean"]), _ends(gain, _share))
    elif gain:
        yield Tile("Compute saved", "none", _missed(gain))
    if net.get("gain") is not None:
        even = net.get("break_even_parameters")
        note = "" if even is None else "no scoring to count"
        if even:
            note = f"pays from {short(even)} parameters"
        yield Tile("Net of scoring", _share(net["gain"]), note)


def _confidence(fields: _Fields) -> str:
    confidence = fields.get("confidence")
    return "" if confidence is None else f"at {confidence:.0%} confidence"


def _notes(fields: _Fields) -> Iterator[Block]:
    """Yields the noise floor and the best fractions, as far as they are known."""
    floor = fields.get("noise_floor")
    if floor:
        gain = floor.get("largest_gain")
        seemed = "" if gain is None else f"; one seemed to save {_share(gain)} of the compute"
        text = (
            f"Two random parts of the pool differ by {floor['deviation']:.4f} (root mean square of "
            f"{counted(floor['pairs'], 'pair')}), at most by "
            f"{floor['largest_difference']:.4f}{seemed}."
        )
        yield Note(text, "Noise floor: random against random")

    best = [
        [
            short_name(row["arm"]),
            _share(row["discard"]),
            _with_ends(row["difference"], _signed),
            row["difference"].get("verdict", ""),
        ]
        for row in fields.get("best_fractions") or ()
    ]
    if best:
        yield Table(
            "Best fraction to discard",
            ["arm", "discard", "difference to unfiltered", "verdict"],
            best,
            "The intervals are widened for the choice.",
        )


# Losses.


def _differences(fields: _Fields) -> Intervals:
    rows = []
    for row in fields["arms"]:
        difference = _difference(row)
        loss = row.get("mean_final_loss")
        cells = [
            short_name(row["arm"]),
            "" if row.get("keep") is None else _share(row["keep"]),
            "" if loss is None else f"{loss:.4f}",
            _with_ends(difference, _signed),
            _with_ends(row.get("difference_from_random") or _NONE, _signed),
            difference.get("verdict", ""),
        ]
        rows.append(_interval_row(cells, difference))

    paired = "Paired by seed" if fields.get("seeds") is None else f"Paired over {_seeds(fields)}"
    confidence = fields.get("confidence")
    interval = "" if confidence is None else f", with the {confidence:.0%} t interval"
    return Intervals(
        "Final validation loss",
        ["arm", "kept", "loss", "difference to unfiltered", "to random", "verdict"],
        "difference to unfiltered",
        rows,
        good=-1,
        caption=f"Lower is better. {paired}{interval}. {_COLORS}",
    )


_COLORS = "Blue: better, orange: worse; gray: not shown to be either."


def _interval_row(cells: Sequence[str], difference: _Fields) -> IntervalRow:
    return IntervalRow(cells, difference.get("mean"), difference.get("low"), difference.get("high"))


def _loss_curves(fields: _Fields) -> list[Block]:
    rows = [row for row in fields["arms"] if row.get("curves")]
    rows.sort(key=lambda row: (row["arm"] != _BASELINE, row.get("mean_final_loss") or 0.0))
    shown = rows[:MAX_CURVES]
    if not shown:
        return []

    caption = "Mean over the seeds; the band spans them. The first steps lie above."
    if len(shown) < len(rows):
        caption += f" The {len(shown) - 1} best of {len(rows) - 1} arms."

    flops = fields.get("flops_per_step")
    return [
        Curves(
            "Validation loss",
            [_loss_curve(row, flops or 1.0) for row in shown],
            "training compute in FLOPs" if flops else "steps",
            "loss",
            baseline=shown[0]["arm"] == _BASELINE,
            skip=0.3,
            caption=caption,
        )
    ]


def _loss_curve(row: _Fields, flops: float) -> Curve:
    """Returns the curve of an arm, with the band of its seeds."""
    points = list(zip(*row["curves"], strict=False))
    losses = [[loss for _, loss in at_step] for at_step in points]
    several = len(row["curves"]) > 1
    return Curve(
        _name(row),
        [at_step[0][0] * flops for at_step in points],
        [sum(values) / len(values) for values in losses],
        [min(values) for values in losses] if several else (),
        [max(values) for values in losses] if several else (),
    )


# Gains.


def _gains(arms: Sequence[_Fields]) -> list[Block]:
    rows = []
    for row in arms:
        gain, net = row.get("gain") or _NONE, row.get("net") or _NONE
        if not gain:
            continue
        even = net.get("break_even_parameters")
        rows.append(
            [
                _name(row),
                _gross(gain),
                "" if net.get("gain") is None else _share(net["gain"]),
                short(even) if even else "",
                f"{gain['seeds'] - gain['reached']} of {gain['seeds']}",
            ]
        )

    if not rows:
        return []
    return [
        Table(
            "Gross and net gain",
            ["arm", "gross", "net of scoring", "pays from (parameters)", "never reached"],
            rows,
            "Share of the training compute that an arm saves on the way to the final loss of the "
            "whole pool. Net: the scoring of everything that was chosen from is counted. Pays "
            "from: size of the language model above which that is worth it. Never reached: runs "
            "that end above that loss; an arm with such a run has no gain.",
        )
    ]


def _net_curves(arms: Sequence[_Fields]) -> list[Block]:
    # What costs nothing to score saves the same at every size.
    sizes = [
        Curve(_name(row), *zip(*row["net"]["by_parameters"], strict=True))
        for row in arms
        if (row.get("net") or _NONE).get("scoring_flops_per_token")
        and row["net"].get("by_parameters")
    ]
    if not sizes:
        return []
    return [
        Curves(
            "Net gain by size of the language model",
            sizes,
            "parameters (logarithmic)",
            "compute saved",
            log_x=True,
            caption="With the scoring counted and the gross gain taken as the same at every size. "
            "Above zero, filtering pays.",
        )
    ]


def _gross(gain: _Fields) -> str:
    if gain.get("mean") is not None:
        return _with_ends(gain, _share)
    bound = gain.get("at_most")
    return "none" if not gain["reached"] or bound is None else f"at most {_share(bound)}"


def _missed(gain: _Fields) -> str:
    missed = gain["seeds"] - gain["reached"]
    return f"{missed} of {counted(gain['seeds'], 'run')} never reach the whole pool's loss"


# The sweep, and the sources.


def _sweeps(arms: Sequence[_Fields]) -> list[Block]:
    """Returns the difference of each arm against the share that it discards."""
    by_arm: dict[str, list[_Fields]] = {}
    for row in arms:
        if _difference(row).get("mean") is not None and row.get("keep") is not None:
            by_arm.setdefault(row["arm"], []).append(row)

    curves = []
    for name, rows in by_arm.items():
        if len(rows) > 1:
            rows.sort(key=lambda row: -row["keep"])
            differences = [row["difference"] for row in rows]
            has_ends = all(one.get("low") is not None for one in differences)
            curves.append(
                Curve(
                    short_name(name),
                    [1 - row["keep"] for row in rows],
                    [one["mean"] for one in differences],
                    [one["low"] for one in differences] if has_ends else (),
                    [one["high"] for one in differences] if has_ends else (),
                )
            )

    # The rater first, then the best.
    curves.sort(key=lambda curve: (curve.name != _RATER, min(curve.y)))
    if not curves:
        return []
    return [
        Curves(
            "Difference in loss by share discarded",
            curves,
            "share of the pool discarded",
            "difference to unfiltered",
            caption="Below zero: better than the whole pool. The band is the interval of each "
            "point, not widened for a choice among them.",
        )
    ]


def _by_source(arms: Sequence[_Fields], main: _Fields | None) -> list[Block]:
    """Returns the differences of the main arm by source, and those of all arms."""
    differences: _Fields = (main or _NONE).get("difference_by_source") or _NONE
    if main is None or not any(differences):
        return []
    losses = main.get("by_source") or _NONE

    # The sources that lose come first.
    names = sorted(differences, key=lambda name: -differences[name]["mean"])
    rows = [
        _interval_row(
            [
                _source(name),
                "" if losses.get(name) is None else f"{losses[name]:.4f}",
                _with_ends(differences[name], _signed),
            ],
            differences[name],
        )
        for name in names[:MAX_SOURCES]
    ]
    more = f" The first {MAX_SOURCES} of {len(names)}." if len(names) > MAX_SOURCES else ""
    blocks: list[Block] = [
        Intervals(
            f"{_name(main)} by source of the validation documents",
            ["source", "loss", "difference to unfiltered"],
            "difference to unfiltered",
            rows,
            good=-1,
            caption=f"The sources that lose first.{more} {_COLORS}",
        )
    ]

    others = [row for row in arms if row.get("difference_by_source")]
    if len(others) > 1:
        cells = [
            [
                _source(name),
                *(
                    _signed(row["difference_by_source"][name]["mean"])
                    if name in row["difference_by_source"]
                    else ""
                    for row in others
                ),
            ]
            for name in names[:MAX_SOURCES]
        ]
        blocks.append(
            Table(
                "All arms by source",
                ["source", *map(_name, others)],
                cells,
                "Mean difference in loss to unfiltered; below zero: better.",
            )
        )
    return blocks


def _source(name: str) -> str:
    return short_name(name) or "(no source)"


# Tables and facts.


def _tables(fields: _Fields) -> Iterator[Block]:
    """Yields the further tables, in the form that this module's description gives."""
    for table in fields.get("tables") or ():
        columns = [str(name) for name in table["columns"]]
        rows = [
            [_cell(value) for value in row[: len(columns)]] + [""] * (len(columns) - len(row))
            for row in table["rows"]
        ]
        yield Table(str(table["title"]), columns, rows, str(table.get("caption", "")))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "\u2212")
    return short(value) if isinstance(value, float) else short_name(str(value), 200)


def _uses(arms: Sequence[_Fields]) -> list[Block]:
    columns = {
        "kept_documents": "documents",
        "kept_bytes": "bytes",
        "kept_tokens": "tokens",
        "passes": "passes",
        "seconds": "seconds",
    }
    known = [field for field in columns if any(row.get(field) is not None for row in arms)]
    if not known:
        return []

    rows = [
        [
            _name(row),
            *(
                f"{row[field]:,.0f}"
                if field == "seconds"
                else _cell(row[field])
                if row.get(field) is not None
                else ""
                for field in known
            ),
        ]
        for row in arms
    ]

    return [
        Table(
            "What each arm used",
            ["arm", *(columns[field] for field in known)],
            rows,
            "What it kept of the pool, how often training passed over it, and the time of all "
            "its runs.",
        )
    ]


def _settings(fields: _Fields) -> Iterator[tuple[str, str]]:
    for name in ("parameters", "seeds"):
        if fields.get(name) is not None:
            yield name, f"{fields[name]:,}"
    for group in ("data", "options"):
        yield from _flat("", fields.get(group) or _NONE)


def _flat(prefix: str, values: Any) -> Iterator[tuple[str, str]]:
    """Yields the numbers and texts of a nested mapping with dotted names."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), value)
    elif isinstance(values, list | tuple) and values:
        if all(isinstance(value, str | int | float) for value in values):
            yield prefix, ", ".join(map(_cell, values))
    elif isinstance(values, str | int | float):
        yield prefix, values if isinstance(values, str) else _cell(values)


def _share(value: float) -> str:
    return f"{value:.0%}".replace("-", "\u2212")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\u2212")


def _with_ends(interval: _Fields, shown: Callable[[float], str]) -> str:
    if interval.get("mean") is None:
        return ""
    return f"{shown(interval['mean'])} {_ends(interval, shown)}".strip()


def _ends(interval: _Fields, shown: Callable[[float], str] = _signed) -> str:
    if interval.get("low") is None or interval.get("high") is None:
        return ""
    return f"({shown(interval['low'])} to {shown(interval['high'])})"
