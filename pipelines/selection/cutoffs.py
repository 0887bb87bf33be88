"""Cutoffs: finds what a policy keeps, in one search over the corpus or over every source.

A `Policy` says what to keep; `Cutoffs` is how far that is known. Both are small, and travel between
rounds as a side input. In each round every worker answers the same questions (`Cutoffs.answers`),
the answers are merged (`merge_answers`), and `Cutoffs.advance` applies them. There is one question
for each group; a group is the corpus or one source. A question asks for the count that the group's
search needs next, or for the keys of its undecided documents where few are left. The final cutoffs
decide every document: `Cutoffs.keeps`.

A minimum of M documents keeps the best M of each source whatever the rule. If the rule applies to
the corpus, these documents count toward its target: they are found first, and the descent then
fills the rest of the target with the best of the other documents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.descent import Boundary, Unit
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.ranking import (
    LAST_LEVEL,
    Ends,
    RankKeys,
    SelectionError,
    UnknownSourceError,
    rows_by_code,
)
from datarater.pipelines.selection.sampling import Repetition
from datarater.pipelines.selection.search import CutoffSearch, Decision, Sortable, State

CORPUS_GROUP = ""

# Up to this many undecided documents are gathered and sorted (32 bytes each) instead of counted at
# a next level.
SORT_LIMIT = 65_536
# Maximum number of bins and keys that wait to be merged, unless the result has more.
_MAX_WAITING = 1 << 17


class Family(StrEnum):
    """The purpose of a question: the rule's cutoff, or a source's minimum."""

    RULE = "rule"
    MINIMUM = "minimum"


Question = tuple[Family, str]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Answers:
    """Answers to the questions of a round, about some documents or all of them.

    Attributes:
        counts: Counts of the undecided documents by question.
        keys: Keys of the undecided documents by question, where these are to be sorted.
    """

    counts: dict[Question, Histogram]
    keys: dict[Question, RankKeys]

    @property
    def size(self) -> int:
        """The number of bins and keys."""
        return sum(len(counted.bins_K) for counted in self.counts.values()) + sum(
            map(len, self.keys.values())
        )


@dataclass(frozen=True)
class Cutoffs:
    """How far it is known what a policy keeps.

    Attributes:
        policy: What to keep.
        searches: Searches that are not decided yet, by question.
        rule: Decisions of the rule by group (`CORPUS_GROUP`, or a source with scored documents).
        minimum: Decisions by source on its best documents, which are kept whatever the rule.
        documents: Number of documents counted in the corpus.
        tokens: Number of their tokens.
        own: Whether the corpus counted is the one selected from, and not a reference.
        sort_limit: Maximum number of documents whose keys are gathered in one round.
    """

    policy: Policy
    searches: Mapping[Question, CutoffSearch]
    rule: Mapping[str, Decision]
    minimum: Mapping[str, Decision]
    documents: int = 0
    tokens: int = 0
    own: bool = True
    sort_limit: int = SORT_LIMIT

    @classmethod
    def begin(
        cls,
        policy: Policy,
        histogram: Histogram,
        sources: Mapping[str, tuple[int, int]],
        *,
        own: bool = True,
        sort_limit: int = SORT_LIMIT,
    ) -> Cutoffs:
        """Returns the cutoffs before the first round.

        Args:
            policy: What to keep.
            histogram: Histogram of all scored documents at level 0.
            sources: Number of scored documents and tokens of every source.
            own: Whether the corpus counted is the one selected from; False for a reference.
            sort_limit: Maximum number of documents whose keys are gathered in one round.

        Raises:
            UnknownSourceError: A weight names a source that the corpus does not have.
        """
        unknown = sorted(set(policy.weights) - set(sources))
        if unknown:
            known = ", ".join(repr(source) for source in sorted(sources)[:20])
            raise UnknownSourceError(
                f"no source is called {unknown[0]!r}, which has a weight; the corpus has {known}"
            )

        # The rule: one group per source, or one for the corpus, unless it waits for the minimum.
        scored = {source: counts for source, counts in sources.items() if counts[0]}
        documents, tokens = histogram.documents, histogram.tokens
        begun: dict[Question, State] = {}
        if policy.per is Scope.SOURCE:
            for source, counts in scored.items():
                begun[Family.RULE, source] = policy.rule_of(source).begin(
                    policy.target_of(source, *counts), counts[0]
                )
        elif not policy.counts_minimum:
            begun[Family.RULE, CORPUS_GROUP] = policy.rule.begin(
                policy.rule.target(documents, tokens), documents, histogram
            )

        # The minimum, unless it is part of every source's target.
        if policy.minimum and not policy.raises_targets:
            for source, (count, _) in scored.items():
                begun[Family.MINIMUM, source] = Boundary.begin(
                    Unit.DOCUMENTS, min(policy.minimum, count), count
                )
        return cls(policy, {}, {}, {}, documents, tokens, own, sort_limit)._with(begun)

    @classmethod
    def fixed(cls, policy: Policy, decision: Decision) -> Cutoffs:
        """Returns cutoffs for the whole corpus that a reference has already decided."""
        return cls(policy, {}, {CORPUS_GROUP: decision}, {}, own=False)

    def _with(self, states: Mapping[Question, State]) -> Cutoffs:
        """Returns the cutoffs with these searches, and with the decisions among them."""
        searches: dict[Question, CutoffSearch] = {}
        decided = {Family.RULE: dict(self.rule), Family.MINIMUM: dict(self.minimum)}
        for question, state in states.items():
            if state.done is True:
                family, group = question
                decided[family][group] = state
            else:
                searches[question] = state
        rule, minimum = decided[Family.RULE], decided[Family.MINIMUM]
        cutoffs = replace(self, searches=searches, rule=rule, minimum=minimum)

        # Once the minimum is found, the rule fills the rest of the corpus's target.
        if cutoffs.policy.counts_minimum and cutoffs.done and not rule:
            return cutoffs._with({(Family.RULE, CORPUS_GROUP): cutoffs._begin_rest()})
        return cutoffs

    def _begin_rest(self) -> State:
        """Begins the search among the documents that the minimum does not keep."""
        found = _total(self.minimum.values())
        assert found is not None  # a descent counts what it keeps
        rule = self.policy.rule
        left = rule.target(self.documents, self.tokens) - found[rule.unit is Unit.TOKENS]
        return rule.begin(max(left, 0), self.documents - found[0])

    # Questions and answers.

    @functools.cached_property
    def _by_family(self) -> dict[Family, dict[str, CutoffSearch]]:
        searches: dict[Family, dict[str, CutoffSearch]] = {}
        for (family, group), search in self.searches.items():
            searches.setdefault(family, {})[group] = search
        return searches

    @functools.cached_property
    def _sorted(self) -> dict[Question, Sortable]:
        """The searches answered by keys: the smallest first, as many as one machine can sort."""
        sortable = {
            question: search.sortable
            for question, search in self.searches.items()
            if search.sortable is not None
        }

        chosen, total = {}, 0
        for question in sorted(sortable, key=lambda asked: (sortable[asked].undecided, asked)):
            search = sortable[question]
            total += search.undecided
            # At the last level only the keys distinguish documents.
            if total <= self.sort_limit or search.level == LAST_LEVEL:
                chosen[question] = search
        return chosen

    @property
    def done(self) -> bool:
        """Whether every document is decided."""
        return not self.searches

    def _is_corpus(self, question: Question) -> bool:
        """Returns whether a question is about the whole corpus, and not about a source."""
        return question[0] is Family.RULE and self.policy.per is Scope.CORPUS

    def from_summary(self, histograms: Mapping[str, Histogram]) -> Answers | None:
        """Answers this round's questions for some splits without reading their documents.

        Args:
            histograms: Level-0 histograms of the splits by source.

        Returns:
            The answers; None if a question goes deeper than level 0, or leaves out what the minimum
            keeps.
        """
        if any(search.level or self._is_corpus(asked) for asked, search in self.searches.items()):
            return None
        return Answers(
            {asked: histograms[asked[1]] for asked in self.searches if asked[1] in histograms}, {}
        )

    def concerns(self, histograms: Mapping[str, Histogram]) -> bool:
        """Returns whether some splits can contain an undecided document.

        Args:
            histograms: Level-0 histograms of the splits by source.
        """
        for question, search in self.searches.items():
            if self._is_corpus(question):
                histogram: Histogram | None = Histogram.merge(histograms.values())
            else:
                histogram = histograms.get(question[1])
            if histogram is not None and search.concerns(histogram):
                return True
        return False

    def answers(self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str]) -> Answers:
        """Answers this round's questions for some documents.

        Args:
            keys: Rank keys of N scored documents.
            codes_N: Source of each document, an index into `names`.
            names: Names of the sources.
        """
        answers = Answers({}, {})
        for question, undecided in self._undecided(keys, codes_N, names):
            if not len(undecided):
                continue
            if question in self._sorted:
                answers.keys[question] = undecided
                continue
            counted = self.searches[question].count(undecided)
            if len(counted.bins_K):
                answers.counts[question] = counted
        return answers

    def _undecided(
        self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str]
    ) -> Iterator[tuple[Question, RankKeys]]:
        """Yields the undecided keys by question."""
        for family in self._by_family:
            # The corpus is one group: no document needs to be assigned to a source.
            corpus = (family, CORPUS_GROUP)
            if self._is_corpus(corpus):
                search = self.searches[corpus]
                rest = keys
                if self.policy.counts_minimum:
                    rest = keys.take(~self._kept_by_minimum(keys, codes_N, names))
                yield corpus, rest.between(search.low, search.high)
                continue

            # A group without a question has both ends at 0, and so no keys between them.
            by_group = self._by_family[family]
            searches = [by_group.get(name) for name in names]
            low = Ends.of([0 if search is None else search.low for search in searches])
            high = Ends.of([0 if search is None else search.high for search in searches])
            undecided_N = keys.below_each(high, codes_N) & ~keys.below_each(low, codes_N)
            for code, rows_M in rows_by_code(codes_N, undecided_N):
                yield (family, names[code]), keys.take(rows_M)

    def advance(self, answers: Answers) -> Cutoffs:
        """Returns the cutoffs after a round.

        Args:
            answers: Merged answers of all workers.

        Raises:
            SelectionError: The answers contradict the counts of an earlier round.
        """
        no_keys, no_counts = RankKeys.empty(), Histogram.empty()
        states: dict[Question, State] = {}
        for question, search in self.searches.items():
            if question in self._sorted:
                states[question] = self._sorted[question].settle(
                    answers.keys.get(question, no_keys),
                    through_equals=question[0] is Family.MINIMUM,
                )
            else:
                states[question] = search.descend(answers.counts.get(question, no_counts))
        return self._with(states)

    # Decisions.

    def keeps(
        self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str], seed: int
    ) -> NDArray[np.bool_]:
        """Returns a mask of the documents to keep.

        Args:
            keys: Rank keys of N scored documents.
            codes_N: Source of each document, an index into `names`.
            names: Names of the sources.
            seed: Seed of the selection.

        Raises:
            SelectionError: Some documents are still undecided.
        """
        if not self.done:
            raise SelectionError("the cutoff is not known after the last round of the descent")

        # The rule, over the corpus or with one cutoff or draw per source.
        if self.policy.per is Scope.CORPUS:
            kept_N = self.rule[CORPUS_GROUP].keeps(keys, seed)
        else:
            decisions = [self.rule.get(name) for name in names]
            kept_N = _below_ends(decisions, keys, codes_N)
            draws = {
                code: decision
                for code, decision in enumerate(decisions)
                if decision is not None and decision.end is None
            }
            if draws:
                drawn_N = np.isin(codes_N, list(draws))
                for code, rows_M in rows_by_code(codes_N, drawn_N):
                    kept_N[rows_M] = draws[code].keeps(keys.take(rows_M), seed)

        if self.minimum:
            kept_N = kept_N | self._kept_by_minimum(keys, codes_N, names)
        return kept_N

    def copies(
        self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str], seed: int
    ) -> NDArray[np.int64]:
        """Returns how many copies of each document to keep: 0 or 1, unless the rule repeats.

        The arguments are those of `keeps`.
        """
        copies_N = self.keeps(keys, codes_N, names, seed).astype(np.int64)
        if self.policy.per is Scope.CORPUS:
            decision = self.rule[CORPUS_GROUP]
            if isinstance(decision, Repetition):
                copies_N = np.maximum(copies_N, decision.copies(keys, seed))
            return copies_N

        repeating = {
            code: decision
            for code, decision in enumerate(self.rule.get(name) for name in names)
            if isinstance(decision, Repetition)
        }
        for code, rows_M in rows_by_code(codes_N, np.isin(codes_N, list(repeating))):
            more_M = repeating[code].copies(keys.take(rows_M), seed)
            copies_N[rows_M] = np.maximum(copies_N[rows_M], more_M)
        return copies_N

    def _kept_by_minimum(
        self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str]
    ) -> NDArray[np.bool_]:
        return _below_ends([self.minimum.get(name) for name in names], keys, codes_N)

    def equals(self) -> dict[str, tuple[int, int]]:
        """Returns the cutoffs that fall between documents with equal keys.

        Returns:
            By group: the key, and how many of its documents to keep.
        """
        return {
            group: (decision.end, decision.equal)
            for group, decision in self.rule.items()
            if decision.end is not None and decision.equal
        }

    def counted(self) -> tuple[int, int] | None:
        """Returns the number of documents and tokens kept, if the descent has counted them.

        Returns:
            The two numbers; None for a threshold, a draw or a reference's cutoff, which are only
            counted when they are applied.
        """
        if not self.own or (self.minimum and not self.policy.counts_minimum):
            return None
        return _total([*self.rule.values(), *self.minimum.values()])

    def expected(self) -> tuple[float, float] | None:
        """Returns the expected number of documents that a draw accepts, and its standard deviation.

        Returns:
            The two numbers; None if the rule does not draw, or a minimum adds documents to it.
        """
        if not self.rule or self.minimum:
            return None
        total = variance = 0.0
        for decision in self.rule.values():
            expected = decision.expected(own=self.own)
            if expected is None:
                return None
            total += expected[0]
            variance += expected[1] ** 2
        return total, variance**0.5

    def to_json(self) -> dict[str, Any]:
        """Returns the cutoffs as JSON fields for the manifest."""
        if self.policy.per is Scope.CORPUS:
            fields = self.rule[CORPUS_GROUP].to_json(own=self.own)
        else:
            fields = {"sources": self._by_source(self.rule)}
        if self.minimum:
            fields["minimum"] = self._by_source(self.minimum)
        return fields

    def _by_source(self, decisions: Mapping[str, Decision]) -> dict[str, Any]:
        return {
            source: decision.to_json(own=self.own) for source, decision in sorted(decisions.items())
        }


def _below_ends(
    decisions: Sequence[Decision | None], keys: RankKeys, codes_N: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Returns a mask of the keys below the cutoff of their own source, if that has a cutoff."""
    ends = Ends.of([0 if decision is None else decision.end or 0 for decision in decisions])
    return keys.below_each(ends, codes_N)


def _total(decisions: Iterable[Decision]) -> tuple[int, int] | None:
    """Returns the number of documents and tokens kept; None if a decision has not counted them."""
    total = total_tokens = 0
    for decision in decisions:
        if decision.counted is None:
            return None
        total += decision.counted[0]
        total_tokens += decision.counted[1]
    return total, total_tokens


def merge_answers(parts: Iterable[Answers]) -> Answers:
    """Merges the answers of several workers, with the same result in any order and grouping.

    Parts are merged as they come: about as many bytes wait as the result has. An answer has at most
    65,536 bins of 24 bytes, or, of all questions together, the keys of `SORT_LIMIT` documents of 32
    bytes; only the last two levels, which tell documents of one hash apart, have more.
    """
    total, waiting, size = Answers({}, {}), [], 0
    for part in parts:
        waiting.append(part)
        size += part.size
        if size > max(_MAX_WAITING, total.size):
            total, waiting, size = _merge([total, *waiting]), [], 0
    return _merge([total, *waiting])


def _merge(parts: Sequence[Answers]) -> Answers:
    return Answers(
        _merge_each((part.counts for part in parts), Histogram.merge),
        _merge_each((part.keys for part in parts), RankKeys.concatenate),
    )


def _merge_each(
    parts: Iterable[Mapping[Question, _Answer]], merge: Callable[[Iterable[_Answer]], _Answer]
) -> dict[Question, _Answer]:
    gathered: dict[Question, list[_Answer]] = {}
    for part in parts:
        for question, answer in part.items():
            gathered.setdefault(question, []).append(answer)
    return {
        question: answers[0] if len(answers) == 1 else merge(answers)
        for question, answers in gathered.items()
    }
