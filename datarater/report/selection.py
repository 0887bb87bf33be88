"""The report of a selection, from the committed files of its run folder.

The counts and the distribution of the scores are those of the whole corpus, from `scoring.json` and
the manifest. What needs single documents comes from a sample of the score files
(`datarater.report.sample`), which is all of them in a small run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph.cascade import by_certainty
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import selections
from datarater.pipelines.run_folder.counts import by_count
from datarater.pipelines.run_folder.kept_counts import KeptCounts
from datarater.pipelines.run_folder.layout import RunFolder, read_json
from datarater.pipelines.run_folder.manifest import Manifest, RuleFields, SelectionOptions
from datarater.pipelines.run_folder.scored import Scoring, read_scoring
from datarater.pipelines.selection.histogram import Histogram as RankHistogram
from datarater.pipelines.selection.ranking import scores_of
from datarater.rater_model.counted import counted
from datarater.report import report_command
from datarater.report.documents import Text, read_texts
from datarater.report.html import render
from datarater.report.keeping import Keeping
from datarater.report.page import (
    BarRow,
    BarTable,
    Block,
    Excerpt,
    Excerpts,
    Facts,
    HeatMap,
    Histogram,
    Hue,
    Note,
    Page,
    Section,
    Tile,
    Tiles,
)
from datarater.report.sample import (
    LENGTH_EDGES,
    Candidate,
    Limits,
    Place,
    Sample,
    take_sample,
)
from datarater.report.scales import short
from datarater.report.visible import short_name

MAX_SOURCES = 30
MAX_EXTREMES = 5
LEFT_OUT = "Left out (--report_texts 0)."
_BARS = 48
_OUTER = 0.001  # share of the documents beyond each end of a score axis
_REPORT_SECONDS = 150.0  # after the limits on reading, only a store that hangs takes so long
_MANY = 100  # documents from which a share means something
_REJECTED_SHARE = 0.01
_TIED_SHARE = 0.5
_LENGTH_CORRELATION = 0.5


@dataclass(frozen=True)
class _Facts:
    """What the committed files say.

    Attributes:
        manifest: Fields of the manifest.
        scoring: Fields of `scoring.json`.
        keeping: What the selection keeps.
        sample: The documents that were read.
    """

    manifest: Manifest
    scoring: Scoring
    keeping: Keeping
    sample: Sample

    @property
    def kept_share(self) -> float:
        """Share of the scored documents that is kept."""
        scored = self.manifest.scored
        return self.manifest.counts.kept / scored if scored else 0.0


def write_report(folder: RunFolder, name: str, texts: int, limits: Limits | None = None) -> str:
    """Writes the report of a selection beside its manifest, replacing an earlier one.

    Args:
        folder: The run folder.
        name: Name of the selection; its manifest is committed.
        texts: Number of documents in each list; 0 leaves the text of the corpus out.
        limits: How much is read.

    Returns:
        The path of the report.

    Raises:
        CountsError: A file of the run is missing or damaged.
        OSError: A file cannot be read or written.
    """
    page = render(selection_page(folder, name, texts, limits or Limits()))
    return _replace(folder, name, page)


def _replace(folder: RunFolder, name: str, page: str) -> str:
    path = folder.selection(name).report_path
    commits.replace(path, page.encode())
    return path


def try_to_write_report(
    folder: RunFolder, name: str, texts: int, seconds: float = _REPORT_SECONDS
) -> bool:
    """Writes the report of a selection; a failure is logged and changes nothing else.

    Args:
        folder: The run folder.
        name: Name of the selection; its manifest is committed.
        texts: Number of documents in each list; 0 leaves the text of the corpus out.
        seconds: Time after which the report is given up.

    Returns:
        Whether it was written.
    """
    try:
        page = _within(seconds, lambda: render(selection_page(folder, name, texts, Limits())))
        _replace(folder, name, page)
    except Exception as error:  # a picture of a selection must never stop the selection
        why = str(error) or f"it took longer than {seconds:g} s"
        logging.getLogger(__name__).warning(
            "the report of the selection %s was not written (%s: %s); to make it later: %s",
            name,
            type(error).__name__,
            why,
            report_command(folder.path, name, texts),
        )
        return False
    return True


def _within(seconds: float, make: Callable[[], str]) -> str:
    """Returns what a function returns.

    Raises:
        TimeoutError: It takes too long. Its thread is left behind, and ends with the process.
    """
    made: Future[str] = Future()

    def work() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=work, name="report", daemon=True).start()
    return made.result(timeout=seconds)


def leaves_texts_out(page: bytes) -> bool:
    """Returns whether a report was made without the text of the corpus."""
    return f'<p class="wide">{LEFT_OUT}</p>'.encode() in page


def finished_selections(folder: RunFolder) -> list[str]:
    """Returns the names of the selections that are complete."""
    return [
        name for name in selections(folder) if commits.exists(folder.selection(name).success_path)
    ]


def selection_page(folder: RunFolder, name: str, texts: int, limits: Limits) -> Page:
    """Returns the report of a selection as plain data; see `write_report`."""
    path = folder.selection(name).manifest_path
    manifest = read_json(path, Manifest)
    if manifest is None:
        raise CountsError(f"{path} is missing: the selection is not finished")
    # The scores of a ranking, where the selection has one, take the place of the run's.
    folder = folder if manifest.ranking is None else folder.ranking(name)
    scoring = read_scoring(folder, manifest.plans)
    keeping = Keeping.of(manifest.cutoff)
    cascade = scoring.identity.cascade
    shown = scoring.histogram
    if cascade is not None and manifest.ranking is None:
        shown = by_certainty(scoring.histogram, cascade)[1]
    bins = ScoreBins.of(shown)
    edges = bins.axis(keeping.cutoffs(list(manifest.sources)))
    sample = take_sample(folder, scoring.splits, keeping, manifest.seed, edges, texts, limits)
    facts = _Facts(manifest, scoring, keeping, sample)

    sections = [
        Section("In short", [_tiles(facts)]),
        Section("Scores", _score_blocks(facts, bins)),
        Section(
            "What is kept of what",
            [
                *source_tables(manifest.sources, facts.kept_share),
                *_excluded(facts),
                _rejects(facts),
            ],
        ),
    ]
    if texts:
        listed = [*sample.best, *sample.above, *sample.below, *sample.worst]
        found = read_texts(listed, scoring.identity.read, limits.text_seconds)
        sections.append(Section("Documents", _documents(facts, found)))
    else:
        sections.append(Section("Documents", [Note(LEFT_OUT)]))
    sections.append(Section("The run", [_run_facts(folder, facts)]))

    versions = manifest.versions
    return Page(
        title=f"Selection {name}",
        lead=asked_for(manifest),
        warnings=warnings(facts, bins),
        sections=sections,
        foot=[
            f"Selected {manifest.finished} by datarater {versions.get('datarater', '?')}.",
            "This page is one file. It runs no script and loads nothing.",
        ],
    )


# What was asked for.


def asked_for(options: SelectionOptions) -> str:
    """Describes the rule of a selection in a sentence or two."""
    what = _rule_in_words(options.rule.kind, options.rule.value)
    what += ", of each source separately." if options.per == "source" else "."

    weights = options.source_weights
    if weights:
        shown = ", ".join(
            f"{_named(source)} {weight}" for source, weight in list(weights.items())[:5]
        )
        more = f" and {len(weights) - 5} more" if len(weights) > 5 else ""
        what += f" Weights of sources: {shown}{more}."
    if options.min_per_source:
        what += f" At least {counted(options.min_per_source, 'document')} of each source."
    ranking = options.ranking
    if ranking is not None and ranking.where:
        what += f" Only documents that meet the condition {ranking.where} count."
    if ranking is not None and ranking.rank_by:
        what += f" They are ranked by {ranking.rank_by}."
    if ranking is not None and ranking.tokens_from:
        what += f" Tokens are counted by {ranking.tokens_from}."
    if options.reference:
        what += f" The scores are compared with the reference {options.reference}."
    return what


def _rule_in_words(kind: str, value: str) -> str:
    match kind:
        case "keep_fraction":
            return f"Keep the best {_percent(value)} of the scored documents"
        case "keep_count":
            return f"Keep the best {_grouped(value)} documents"
        case "token_budget":
            return f"Keep the best documents that fit in {_grouped(value)} tokens"
        case "threshold":
            return f"Keep the documents that score at least {value}"
        case "batch_top_k":
            of = value.replace("/", " of ")
            return (
                f"Keep each document with its chance of being among the best {of} documents of a "
                "random batch"
            )
        case "sample_tokens" | "sample_count":
            size, temperature, copies = value.split()
            unit = "tokens" if kind == "sample_tokens" else "copies"
            return (
                f"Keep documents in copies that grow with their scores, {_grouped(size)} {unit} in "
                f"all ({temperature.replace('=', ' ')}, at most {copies.partition('=')[2]} copies "
                "of a document)"
            )
    return f"{kind} {value}"


def _percent(value: str) -> str:
    share = Fraction(value) * 100
    exact = f"{float(share):.6g}%"
    return exact if Fraction(exact[:-1]) == share else f"{value} ({exact})"


def _grouped(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value


def _tiles(facts: _Facts) -> Tiles:
    counts, scored = facts.manifest.counts, facts.manifest.scored
    cutoffs = facts.keeping.cutoffs(list(facts.manifest.sources))
    if facts.keeping.draws:
        cutoff, note = "none", "documents are drawn by chance"
    elif not cutoffs:
        cutoff, note = "none", "all or nothing is kept"
    elif len(cutoffs) == 1:
        cutoff, note = short(cutoffs[0]), "lowest score kept"
    else:
        cutoff = f"{short(cutoffs[0])} to {short(cutoffs[-1])}"
        note = "lowest score kept, by source"

    tokens = facts.scoring.counts.tokens
    kept_tokens = counts.kept_tokens / tokens if tokens else 0.0
    tiles = [
        Tile("Records read", f"{counts.read:,}", f"{scored:,} scored"),
        Tile(
            "Kept",
            f"{counts.kept:,}",
            f"{facts.kept_share:.1%} of the scored documents",
            Hue.KEPT,
        ),
        Tile("Dropped", f"{counts.dropped:,}", _share_of(counts.dropped, scored), Hue.DROPPED),
        Tile(
            "Rejected",
            f"{counts.rejected:,}",
            _share_of(counts.rejected, counts.read, "of all records"),
            Hue.REJECTED,
        ),
        Tile("Tokens kept", short(counts.kept_tokens), f"{kept_tokens:.1%} of {short(tokens)}"),
        Tile("Cutoff", cutoff, note),
    ]
    if counts.repeats:
        written, copied = counts.written, short(counts.kept_tokens + counts.repeat_tokens)
        tiles.append(Tile("Written", f"{written:,}", f"with all copies; {copied} tokens"))
    parts = [
        ("kept", counts.kept, Hue.KEPT),
        ("dropped", counts.dropped, Hue.DROPPED),
        ("rejected", counts.rejected, Hue.REJECTED),
    ]
    return Tiles(tiles, parts)


def _share_of(count: int, total: int, of: str = "") -> str:
    return f"{count / total:.1%} {of}".strip() if total else ""


# Scores.


@dataclass(frozen=True)
class ScoreBins:
    """The distribution of the scores of a whole corpus.

    Attributes:
        low_K: Lower end of each bin, ascending.
        high_K: Upper end of each bin.
        counts_K: Number of documents in each bin.
    """

    low_K: NDArray[np.float64]
    high_K: NDArray[np.float64]
    counts_K: NDArray[np.int64]

    @classmethod
    def of(cls, histogram: RankHistogram) -> ScoreBins:
        """Returns the bins of a histogram over the upper half of the rank keys' scores."""
        orders_K = histogram.bins_K[::-1] << np.uint64(16)  # the best score comes first there
        high_K, low_K = scores_of(orders_K), scores_of(orders_K | np.uint64(0xFFFF))
        return cls(low_K.astype(float), high_K.astype(float), histogram.counts_K[::-1])

    def axis(self, cutoffs: Sequence[float]) -> NDArray[np.float64]:
        """Returns the ends of the bars: from nearly the lowest to nearly the highest score.

        Args:
            cutoffs: Scores that must lie between the ends.
        """
        if not len(self.counts_K):
            return np.linspace(0, 1, _BARS + 1)
        reached_K = np.cumsum(self.counts_K) / self.counts_K.sum()
        low = float(self.low_K[np.searchsorted(reached_K, _OUTER)])
        high = float(self.high_K[np.searchsorted(reached_K, 1 - _OUTER)])
        low, high = min([low, *cutoffs]), max([high, *cutoffs])
        pad = max((high - low) * 0.01, abs(high) * 1e-6, 1e-9)
        return np.linspace(low - pad, high + pad, _BARS + 1)

    def counts(self, edges_B: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the number of documents in each bar; outer documents count in the outer bars.

        A bin that reaches into several bars is spread evenly over its width.
        """
        if not len(self.counts_K):
            return np.zeros(len(edges_B) - 1)
        ends_2K = np.stack([self.low_K, self.high_K], 1).ravel()
        total_K = np.cumsum(self.counts_K)
        reached_2K = np.stack([total_K - self.counts_K, total_K], 1).ravel()
        reached_B = np.interp(edges_B, ends_2K, reached_2K)
        reached_B[0], reached_B[-1] = 0, total_K[-1]
        return np.diff(reached_B)

    @property
    def largest_share(self) -> float:
        """Share of the documents in the fullest bin."""
        total = self.counts_K.sum()
        return float(self.counts_K.max() / total) if total else 0.0


def _score_blocks(facts: _Facts, bins: ScoreBins) -> list[Block]:
    sample, counts = facts.sample, facts.manifest.counts
    edges_B = sample.score_edges
    counts_B = bins.counts(edges_B)
    kept_B = counts_B * _kept_shares(sample)
    cutoffs = facts.keeping.cutoffs(list(facts.manifest.sources))
    one = cutoffs[0] if len(cutoffs) == 1 else None
    mark = None if one is None else (one, f"cutoff {short(one)}")

    caption = "All scored documents. Scores are defined up to a constant: only their order counts."
    ranking = facts.manifest.ranking
    if ranking is not None:
        caption = f"All documents that meet the conditions, by {ranking.rank_by or 'their scores'}."
    excluded = sum(counts.excluded_by_reason.values())
    kept_label, dropped_label = f"kept {counts.kept:,}", f"dropped {counts.dropped - excluded:,}"
    cascade = None if ranking is not None else facts.scoring.identity.cascade
    if cascade is not None:
        above, shown, below = by_certainty(facts.scoring.histogram, cascade)
        kept_label, dropped_label = "kept", "dropped"
        caption = (
            f"The {shown.documents:,} documents that the rater scored. Of the others, its student "
            f"ranks {above.documents:,} above and {below.documents:,} below them."
        )
    if len(cutoffs) > 1:
        caption += (
            f" Each source has its own cutoff, from {short(cutoffs[0])} to {short(cutoffs[-1])}."
        )
    if facts.keeping.draws:
        caption += " Documents are drawn: the better one is, the likelier it is kept."
    histogram = Histogram(
        "Distribution of the scores",
        edges_B.tolist(),
        [
            (Hue.DROPPED, dropped_label, (counts_B - kept_B).tolist()),
            (Hue.KEPT, kept_label, kept_B.tolist()),
        ],
        "score",
        "documents",
        mark,
        caption,
    )
    if not sample.documents:
        return [histogram]
    return [histogram, _heat_map(facts, mark)]


def _kept_shares(sample: Sample) -> NDArray[np.float64]:
    """Returns the share of each score interval that is kept; empty ones take their neighbor's."""
    counts_B = sample.counts_BL.sum(axis=1)
    known_B = np.flatnonzero(counts_B)
    if not len(known_B):
        return np.zeros(len(counts_B))
    shares = sample.kept_B[known_B] / counts_B[known_B]
    return np.interp(np.arange(len(counts_B)), known_B, shares)


def _heat_map(facts: _Facts, mark: tuple[float, str] | None) -> HeatMap:
    sample = facts.sample
    # One huge document must not squeeze all others: outer lengths count in the outer columns.
    reached_L = np.cumsum(sample.counts_BL.sum(axis=0)) / sample.documents
    first = int(np.searchsorted(reached_L, _OUTER))
    last = int(np.searchsorted(reached_L, 1 - _OUTER)) + 1
    columns_BL = sample.counts_BL[:, first:last].copy()
    columns_BL[:, 0] += sample.counts_BL[:, :first].sum(axis=1)
    columns_BL[:, -1] += sample.counts_BL[:, last:].sum(axis=1)

    # Half as many rows as the histogram has bars: a cell is then about square.
    rows_BL = columns_BL.reshape(_BARS // 2, 2, -1).sum(axis=1)
    correlation = rank_correlation(sample.counts_BL)
    caption = f"{_sampled(facts)} The stronger the color, the more documents."
    if correlation is not None:
        shown = f"{correlation:.2f}".replace("-", "\u2212")
        caption += f" Rank correlation of score and length: {shown}."
    return HeatMap(
        "Score against length",
        LENGTH_EDGES[first : last + 1].tolist(),
        sample.score_edges[::2].tolist(),
        rows_BL.tolist(),
        "length in tokens (logarithmic)",
        "score",
        (_medians(sample, range(first, last)), "median score"),
        mark,
        caption,
    )


def _sampled(facts: _Facts) -> str:
    """Says which documents a figure shows."""
    sample, splits = facts.sample, facts.scoring.splits
    if sample.files == splits:
        return "All scored documents."
    return (
        f"A sample: {counted(sample.documents, 'document')} in {sample.files:,} of "
        f"{counted(splits, 'split')}, "
        "drawn with a fixed seed."
    )


def _medians(sample: Sample, columns: range) -> list[tuple[float, float]]:
    """Returns the median score by length, where there are enough documents."""
    points = []
    for column in columns:
        counts_B = sample.counts_BL[:, column]
        total = int(counts_B.sum())
        if total >= 10:
            reached_B = np.concatenate([[0], np.cumsum(counts_B)])
            median = float(np.interp(total / 2, reached_B, sample.score_edges))
            middle = float(np.sqrt(LENGTH_EDGES[column] * LENGTH_EDGES[column + 1]))
            points.append((middle, median))
    return points


def rank_correlation(counts_BL: NDArray[np.int64]) -> float | None:
    """Returns Spearman's rank correlation of a table of counts; None without any variation."""
    total = counts_BL.sum()
    if total < 2:
        return None
    middles = []
    for counts in (counts_BL.sum(axis=1), counts_BL.sum(axis=0)):
        ranks = np.cumsum(counts) - (counts - 1) / 2
        middles.append((ranks - (total + 1) / 2) / total)
    b, length = middles
    covariance = float(b @ counts_BL @ length)
    scale = float(np.sqrt((counts_BL.sum(axis=1) @ b**2) * (counts_BL.sum(axis=0) @ length**2)))
    return covariance / scale if scale > 1e-12 else None


# Sources and rejects.


def source_tables(counts_by_source: Mapping[str, KeptCounts], share: float) -> list[Block]:
    """Returns the kept shares of the largest sources, and of others that gain and lose most.

    Args:
        counts_by_source: Counts of every source.
        share: Share of all scored documents that is kept.
    """
    sources = [(name, counts) for name, counts in counts_by_source.items() if counts.scored]
    sources.sort(key=lambda item: (-item[1].scored, item[0]))
    # One more row would name the source just as well.
    shown_count = MAX_SOURCES if len(sources) > MAX_SOURCES + 1 else len(sources)
    shown, others = sources[:shown_count], sources[shown_count:]
    rows = [_source_row(_named(name), counts) for name, counts in shown]
    if others:
        total = KeptCounts()
        for _, counts in others:
            total.add(counts)
        rows.append(_source_row(f"and {len(others):,} more", total))

    caption = "The largest sources first." if len(sources) > 1 else ""
    blocks: list[Block] = [_share_table(share, "Share of each source that is kept", rows, caption)]
    extremes = _extremes(others)
    if extremes:
        blocks.append(
            _share_table(
                share,
                "The other sources that gain and lose most",
                [_source_row(_named(name), counts) for name, counts in extremes],
                f"Of those with {_MANY} documents or more.",
            )
        )
    return blocks


def _extremes(sources: Sequence[tuple[str, KeptCounts]]) -> list[tuple[str, KeptCounts]]:
    """Returns the sources of the highest and the lowest kept shares, the highest first."""
    large = [(name, counts) for name, counts in sources if counts.scored >= _MANY]
    large.sort(key=lambda item: (-item[1].kept / item[1].scored, item[0]))
    if len(large) <= 2 * MAX_EXTREMES:
        return large
    return large[:MAX_EXTREMES] + large[-MAX_EXTREMES:]


def _share_table(share: float, title: str, rows: Sequence[BarRow], caption: str) -> BarTable:
    return BarTable(
        title,
        ["source", "scored", "kept", "share"],
        "share kept",
        rows,
        Hue.KEPT,
        (share, f"all sources, {share:.1%}"),
        caption,
    )


def _named(source: str) -> str:
    return short_name(source) or "(no source)"


def _source_row(name: str, counts: KeptCounts) -> BarRow:
    share = counts.kept / counts.scored
    return BarRow([name, f"{counts.scored:,}", f"{counts.kept:,}", f"{share:.1%}"], share)


def _excluded(facts: _Facts) -> list[Block]:
    """Returns a table of the documents that a ranking excludes; empty without one."""
    manifest = facts.manifest
    if manifest.ranking is None:
        return []
    rows = [
        BarRow([reason, f"{number:,}"], number / manifest.scored)
        for reason, number in by_count(manifest.counts.excluded_by_reason)
    ]
    joins = " ".join(f"{table.describe(name)}." for name, table in manifest.joins.items())
    if not rows:
        return [Note(f"None. {joins}".strip(), "Documents that the conditions exclude")]
    return [
        BarTable(
            "Documents that the conditions exclude, by reason",
            ["reason", "documents"],
            "share of the scored documents",
            rows,
            Hue.DROPPED,
            caption=f"They count as dropped. {joins}".strip(),
        )
    ]


def _rejects(facts: _Facts) -> Block:
    reasons = facts.manifest.counts.rejected_by_reason
    total = sum(reasons.values())
    if not total:
        return Note("None.", "Rejected records")
    rows = [
        BarRow([reason, f"{count:,}"], count / total)
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    return BarTable(
        "Rejected records by reason",
        ["reason", "records"],
        "share of all rejected",
        rows,
        Hue.REJECTED,
        caption="Each of them is in rejected/ with its file and position.",
    )


# Documents.


def _documents(facts: _Facts, texts: Mapping[Place, Text]) -> list[Block]:
    sample = facts.sample

    def items(candidates: Sequence[Candidate]) -> list[Excerpt]:
        return [_excerpt(one, texts[one.place]) for one in candidates]

    border = sorted([*sample.above, *sample.below], key=lambda one: (-one.score, one.rank))
    what = "Nearest to a chance of one half" if facts.keeping.draws else "Nearest to the cutoff"
    return [
        Note(_sampled(facts)),
        Excerpts("Best", items(sample.best), "The highest scores, the best first."),
        Excerpts("Borderline", items(border), f"{what}, the better ones first."),
        Excerpts("Worst", items(sample.worst), "The lowest scores, the worst first."),
    ]


def _excerpt(one: Candidate, text: Text) -> Excerpt:
    decision = "kept" if one.chance >= 0.5 else "dropped"
    hue = Hue.KEPT if one.chance >= 0.5 else Hue.DROPPED
    if 0 < one.chance < 1:
        decision = f"chance {one.chance:.0%}"
    facts = {"": _named(one.source)} if one.source else {}
    facts = {**facts, f"{one.tokens:,}": "token" if one.tokens == 1 else "tokens"}
    return Excerpt(one.score, decision, hue, facts, text.head, text.cut, text.reason)


# The run.


def _run_facts(folder: RunFolder, facts: _Facts) -> Facts:
    manifest, scoring = facts.manifest, facts.scoring
    identity = scoring.identity
    rows = [
        ("run folder", folder.path),
        (
            "input",
            f"{counted(identity.inputs.files, 'file')}, {counted(identity.inputs.bytes, 'byte')}",
        ),
        ("records read", f"{manifest.counts.read:,}"),
        ("documents scored", f"{manifest.scored:,} in {counted(scoring.splits, 'split')}"),
        ("rater", manifest.rater),
        *([] if identity.cascade is None else [("student", identity.cascade.student)]),
        ("seed", str(manifest.seed)),
        ("output", f"{counted(len(manifest.files), 'file')}, format {manifest.output_format}"),
        ("text field", identity.read.text_field),
        ("versions", ", ".join(f"{name} {text}" for name, text in manifest.versions.items())),
    ]
    return Facts(rows)


# Warnings.


def warnings(facts: _Facts, bins: ScoreBins) -> list[str]:
    """Returns what a reader must know before anything else."""
    manifest, counts, scored = facts.manifest, facts.manifest.counts, facts.manifest.scored
    found = []
    if not counts.read:
        found.append("The input has no records.")
    elif not scored:
        found.append("No record could be scored: all were rejected.")
    elif counts.rejected > _REJECTED_SHARE * counts.read:
        found.append(
            f"{_share_of(counts.rejected, counts.read)} of the records were rejected "
            f"({counts.rejected:,} of {counts.read:,})."
        )
    if scored and not counts.kept:
        found.append("Nothing is kept.")
    if scored and not counts.dropped and manifest.rule != _KEEP_ALL:
        found.append("Everything is kept: the rule drops nothing.")

    if scored >= _MANY and bins.largest_share > _TIED_SHARE:
        found.append(
            f"{bins.largest_share:.0%} of the documents have nearly the same score: the rater "
            "hardly tells them apart."
        )
    if counts.kept and counts.dropped:
        found += _source_warnings(manifest)
    found += _reference_warnings(facts)

    correlation = rank_correlation(facts.sample.counts_BL)
    if scored >= _MANY and correlation is not None and abs(correlation) > _LENGTH_CORRELATION:
        longer = "long" if correlation > 0 else "short"
        shown = f"{correlation:.2f}".replace("-", "\u2212")
        found.append(
            f"The score follows the length (rank correlation {shown}): the selection favors "
            f"{longer} documents."
        )
    return found


_KEEP_ALL = RuleFields("keep_fraction", "1")


def _source_warnings(manifest: Manifest) -> list[str]:
    """Warns about sources that are lost or kept as a whole."""
    large = {name: counts for name, counts in manifest.sources.items() if counts.scored >= _MANY}
    lost = [name for name, counts in large.items() if not counts.kept]
    whole = [name for name, counts in large.items() if not counts.dropped]
    found = []
    for names, what in ((lost, "Nothing is kept of"), (whole, "Everything is kept of")):
        if names:
            shown = ", ".join(map(_named, names[:5]))
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            plural = "the source" if len(names) == 1 else f"{counted(len(names), 'source')}:"
            found.append(f"{what} {plural} {shown}{more}.")
    return found


def _reference_warnings(facts: _Facts) -> list[str]:
    """Warns if a reference keeps another share of this corpus than was asked for."""
    rule = facts.manifest.rule
    if not facts.manifest.reference or rule.kind != "keep_fraction":
        return []
    asked = float(Fraction(rule.value))
    if facts.manifest.scored < _MANY or abs(facts.kept_share - asked) <= 0.1 * asked:
        return []
    return [
        f"The cutoff of the reference keeps {facts.kept_share:.1%} of this corpus, not "
        f"{asked:.1%}: its scores are distributed differently."
    ]
