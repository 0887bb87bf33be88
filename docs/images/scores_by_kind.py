"""Draws how the demo's rater scores each kind of document, from the demo's own run folder.

    make demo
    .venv/bin/python docs/images/scores_by_kind.py --demo demo_output

The picture, `docs/images/scores-by-kind.svg`, is committed: run this again after a change to the
demo.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import datarater

KINDS = {
    "intact": "intact prose",
    "code": "source code",
    "boilerplate": "boilerplate repeated",
    "shuffled": "bytes shuffled",
    "redrawn": "bytes redrawn",
}
LOW, HIGH, BINS = -6.0, 3.5, 76
WIDTH, ROW, LEFT, TOP = 760, 58, 168, 46
PLOT = WIDTH - LEFT - 24
KEPT, DROPPED, INK = "#1f6f78", "#c9ced6", "#24292f"


def scores_by_kind(run: Path) -> dict[str, np.ndarray]:
    """Returns the scores of every kind of the demo's documents.

    Args:
        run: The demo's run folder; a key such as `"json/decoder.py#redrawn-1082"` names the kind.
    """
    table = datarater.read_scores(str(run))
    kinds = [key.rsplit("#", 1)[1].rsplit("-", 1)[0] for key in table["key"].to_pylist()]
    scores = table["score"].to_numpy()
    return {kind: scores[np.array(kinds) == kind] for kind in KINDS}


def x_of(score: float) -> float:
    """Returns the horizontal position of a score."""
    return LEFT + (score - LOW) / (HIGH - LOW) * PLOT


def bars(scores: np.ndarray, cutoff: float, base: float) -> list[str]:
    """Returns a histogram as rectangles; those above the cutoff have the color of kept ones."""
    counts, edges = np.histogram(np.clip(scores, LOW, HIGH), bins=BINS, range=(LOW, HIGH))
    width, step = PLOT / BINS, (HIGH - LOW) / BINS
    return [
        f'<rect x="{x_of(edge):.1f}" y="{base - height:.1f}" width="{width - 0.8:.1f}" '
        f'height="{height:.1f}" fill="{KEPT if edge + step / 2 >= cutoff else DROPPED}"/>'
        for edge, height in zip(edges, counts / counts.max() * (ROW - 18), strict=False)
        if height > 0
    ]


def draw(by_kind: dict[str, np.ndarray], cutoff: float) -> str:
    """Returns the picture as SVG: one histogram per kind, and the cutoff."""
    height = TOP + ROW * len(KINDS) + 44
    bottom = TOP + ROW * len(KINDS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        f'<text x="{x_of(cutoff) + 8:.1f}" y="24">kept (half of the corpus)</text>',
        f'<text x="{x_of(cutoff) - 8:.1f}" y="24" text-anchor="end">dropped</text>',
    ]

    for row, (kind, label) in enumerate(KINDS.items()):
        base = TOP + ROW * (row + 1) - 6
        share = np.mean(by_kind[kind] >= cutoff)
        parts += [
            f'<text x="{LEFT - 12}" y="{base - 18}" text-anchor="end">{label}</text>',
            f'<text x="{LEFT - 12}" y="{base - 2}" text-anchor="end" font-size="11" '
            f'fill="#57606a">{share:.1%} kept</text>',
            *bars(by_kind[kind], cutoff, base),
            f'<line x1="{LEFT}" y1="{base}" x2="{LEFT + PLOT}" y2="{base}" stroke="#d0d7de"/>',
        ]

    parts += [
        f'<line x1="{x_of(cutoff):.1f}" y1="32" x2="{x_of(cutoff):.1f}" y2="{bottom}" '
        f'stroke="{INK}" stroke-dasharray="4 3"/>',
        *(
            f'<text x="{x_of(tick):.1f}" y="{bottom + 14}" text-anchor="middle" '
            f'font-size="11">{tick}</text>'
            for tick in range(-6, 4)
        ),
        f'<text x="{LEFT + PLOT / 2:.1f}" y="{bottom + 34}" text-anchor="middle">'
        "score of the trained rater</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Reads a finished demo and writes the picture beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("demo_output"), metavar="DIR")
    run = parser.parse_args().demo / "curated"

    manifest = json.loads((run / "selections" / "keep-0.5" / "manifest.json").read_text())
    picture = draw(scores_by_kind(run), manifest["cutoff"]["lowest_score"])

    Path(__file__).with_name("scores-by-kind.svg").write_text(picture)


if __name__ == "__main__":
    main()
