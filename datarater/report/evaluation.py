"""The report of an evaluation, from the `evaluation.json` that `datarater evaluate` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits
from datarater.report.charts import MAX_CURVES
from datarater.report.html import render
from datarater.report.page import (
    Block,
    Curve,
    Curves,
    Facts,
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

EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"
_BASELINE = "unfiltered"


def write_evaluation_report(folder: str) -> str:
    """Writes the report of an evaluation beside its `evaluation.json`; returns its path.

    Raises:
        CountsError: The file is missing or lacks a field.
        OSError: A file cannot be read or written.
    """
    path = f"{folder}/{EVALUATION_FILE}"
    data = commits.read_if_there(path)
    if data is None:
        raise CountsError(f"{path} is missing: the evaluation is not finished")
    try:
        page = evaluation_page(orjson.loads(data))
    except (KeyError, TypeError, ValueError) as error:
        raise CountsError(f"{path} is not the result of an evaluation: {error!r}") from error
    commits.replace(f"{folder}/{REPORT_FILE}", render(page).encode())
    return f"{folder}/{REPORT_FILE}"


def evaluation_page(fields: Mapping[str, Any]) -> Page:
    """Returns the report of an evaluation as plain data.

    Args:
        fields: Content of `evaluation.json`.

    Raises:
        KeyError: A field is missing.
    """
    arms: Sequence[Mapping[str, Any]] = fields["arms"]
    seeds = "1 seed" if fields["seeds"] == 1 else f"{fields['seeds']} seeds"
    return Page(
        title="What is the data worth?",
        lead=f"Fresh language models of {short(fields['parameters'])} parameters, {seeds}, trained "
        "on the whole pool and on what each arm keeps of it.",
        warnings=fields["warnings"],
        sections=[
            Section("In short", [_tiles(fields)]),
            Section("Worth", [*_notes(fields), _differences(fields), _gains(arms)]),
            Section("Curves", _curves(fields)),
            Section("Settings", [Facts(list(_settings(fields)))]),
        ],
        foot=[
            f"Made by datarater {fields['datarater']}.",
            "This page is one file. It runs no script and loads nothing.",
        ],
    )


def _name(row: Mapping[str, Any]) -> str:
    return row["arm"] if row["keep"] == 1 else f"{row['arm']} {_share(row['keep'])}"


def _tiles(fields: Mapping[str, Any]) -> Tiles:
    tiles = []
    compared = [row for row in fields["arms"] if row["difference"]]
    if compared:
        best = min(compared, key=lambda row: row["difference"]["mean"])
        difference = best["difference"]
        tiles += [
            Tile("Lowest loss", _name(best), f"{best['mean_final_loss']:.4f}"),
            Tile(
                "Difference to unfiltered",
                _signed(difference["mean"]),
                _ends(difference) or "one seed: no interval",
            ),
            Tile("Verdict", difference["verdict"], f"at {fields['confidence']:.0%} confidence"),
        ]
        if best["gain"] and best["gain"]["mean"] is not None:
            net = best["net"]["gain"] if best["net"] else None
            note = "" if net is None else f"{_share(net)} with the scoring counted"
            tiles.append(Tile("Compute saved", _share(best["gain"]["mean"]), note))
    if fields["smallest_detectable"] is not None:
        tiles.append(
            Tile(
                "Detectable",
                short(fields["smallest_detectable"]),
                "difference found in 4 of 5 evaluations",
            )
        )
    return Tiles(tiles)


def _notes(fields: Mapping[str, Any]) -> list[Block]:
    """Returns the noise floor and the best fractions, as far as they are known."""
    notes: list[Block] = []
    floor = fields["noise_floor"]
    if floor is not None:
        gain = floor["largest_gain"]
        seemed = "" if gain is None else f"; one seemed to save {_share(gain)} of the compute"
        text = (
            f"Two random parts of the pool differ by {floor['deviation']:.4f} (root mean square of "
            f"{floor['pairs']} pairs), at most by {floor['largest_difference']:.4f}{seemed}."
        )
        notes.append(Note(text, "Noise floor"))
    best = [
        f"{row['arm']}: discard {_share(row['discard'])}, difference "
        f"{_signed(row['difference']['mean'])} {_ends(row['difference'])}, "
        f"{row['difference']['verdict']}."
        for row in fields["best_fractions"]
    ]
    if best:
        text = " ".join(best) + " The intervals are widened for the choice."
        notes.append(Note(text, "Best fraction to discard"))
    return notes


def _differences(fields: Mapping[str, Any]) -> Intervals:
    rows = []
    for row in fields["arms"]:
        difference = row["difference"] or {}
        cells = [
            row["arm"],
            _share(row["keep"]),
            f"{row['mean_final_loss']:.4f}",
            _with_ends(difference, _signed),
            _with_ends(row["difference_from_random"] or {}, _signed),
            difference.get("verdict", ""),
        ]
        rows.append(
            IntervalRow(
                cells, difference.get("mean"), difference.get("low"), difference.get("high")
            )
        )
    return Intervals(
        "Final validation loss",
        ["arm", "kept", "loss", "difference to unfiltered", "to random", "verdict"],
        "difference to unfiltered",
        rows,
        good=-1,
        caption=f"Lower is better. Paired over {fields['seeds']} seeds, with the t interval. Blue: "
        "better, orange: worse; gray: not shown to be either.",
    )


def _gains(arms: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for row in arms:
        gain, net = row["gain"], row["net"]
        if gain:
            even = net and net["break_even_parameters"]
            rows.append(
                [
                    _name(row),
                    "" if gain["mean"] is None else _with_ends(gain, _share),
                    _share(net["gain"]) if net else "",
                    short(even) if even else "",
                    f"{gain['seeds'] - gain['reached']} of {gain['seeds']}",
                ]
            )
    return Table(
        "Compute saved",
        ["arm", "gross", "net of scoring", "break-even size", "never reached"],
        rows,
        "Share of the compute with which the unfiltered run reaches its final loss. Break-even: "
        "parameters of the language model from which it pays to score. Never reached: runs that "
        "end above that loss, which the mean leaves out.",
    )


def _curves(fields: Mapping[str, Any]) -> list[Block]:
    rows = sorted(fields["arms"], key=lambda row: (row["arm"] != _BASELINE, row["mean_final_loss"]))
    shown = rows[:MAX_CURVES]
    caption = "Mean over the seeds; the band spans them. The first steps lie above."
    if len(shown) < len(rows):
        caption += f" The {len(shown) - 1} best of {len(rows) - 1} arms."
    loss = [_loss_curve(row, fields["flops_per_step"]) for row in shown]
    unit = "training compute in FLOPs"
    blocks: list[Block] = [
        Curves("Validation loss", loss, unit, "loss", baseline=True, skip=0.3, caption=caption)
    ]

    sizes = [
        Curve(_name(row), *zip(*row["net"]["by_parameters"], strict=True))
        for row in shown
        # What costs nothing to score saves the same at every size.
        if row["net"] and row["net"]["scoring_flops_per_token"]
    ]
    if sizes:
        blocks.append(
            Curves(
                "Net gain by size of the language model",
                sizes,
                "parameters (logarithmic)",
                "compute saved",
                log_x=True,
                caption="With the scoring counted and the gross gain taken as the same at every "
                "size. Above zero, filtering pays.",
            )
        )
    return blocks


def _loss_curve(row: Mapping[str, Any], flops: float) -> Curve:
    """Returns the curve of an arm, with the band of its seeds."""
    points = list(zip(*row["curves"], strict=True))
    losses = [[loss for _, loss in at_step] for at_step in points]
    several = len(row["curves"]) > 1
    return Curve(
        _name(row),
        [at_step[0][0] * flops for at_step in points],
        [sum(values) / len(values) for values in losses],
        [min(values) for values in losses] if several else (),
        [max(values) for values in losses] if several else (),
    )


def _settings(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{fields['parameters']:,}"
    yield "seeds", str(fields["seeds"])
    for group in ("data", "options"):
        yield from _flat("", fields[group])


def _flat(prefix: str, values: Any) -> Iterator[tuple[str, str]]:
    """Yields the numbers and texts of a nested mapping with dotted names."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), value)
    elif isinstance(values, str | int | float):
        yield prefix, f"{values:,}" if isinstance(values, int) else str(values)


def _share(value: float) -> str:
    return f"{value:.0%}".replace("-", "\u2212")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\u2212")


def _with_ends(interval: Mapping[str, Any], shown: Callable[[float], str]) -> str:
    return f"{shown(interval['mean'])} {_ends(interval, shown)}".strip() if interval else ""


def _ends(interval: Mapping[str, Any], shown: Callable[[float], str] = _signed) -> str:
    if interval["low"] is None or interval["high"] is None:
        return ""
    return f"({shown(interval['low'])} to {shown(interval['high'])})"
