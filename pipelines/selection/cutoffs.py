"""Cutoffs: finds what a policy keeps, in one descent over the corpus or over every source.

A `Policy` says what to keep; `Cutoffs` is how far that is known. Both are small, and travel between
rounds as a side input. In each round every worker answers the same questions (`Cutoffs.answers`),
the answers are merged (`merge_answers`), and `Cutoffs.advance` applies them. There is one question
for each group; a group is the corpus or one source. A question asks for a histogram over one digit
of the undecided documents' rank keys, or for the keys themselves where few documents are left. The
final cutoffs decide every document: `Cutoffs.keeps`.

A minimum of M documents keeps the best M of each source whatever the rule. If the rule applies to
the corpus, these documents count toward its target: they are found first, and the descent then
fills the rest of the target with the best of the other documents.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection import batch_top_k, descent, ranking
from datarater.pipelines.selection.batch_top_k import Acceptance, Distribution
from datarater.pipelines.selection.descent import Boundary, Histogram, Step
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.ranking import LAST_LEVEL, Ends, RankKeys, SelectionError
from datarater.pipelines.selection.rules import BatchTopK, KeepCount, KeepFraction, Threshold, Unit

CORPUS_GROUP = ""


class Family(StrEnum):
    """The purpose of a question: the rule's cutoff, or a source's minimum."""

    RULE = "rule"
    MINIMUM = "minimum"


Question = tuple[Family, str]
Answer = Histogram | RankKeys
Answers = dict[Question, Answer]
Group = Boundary | Distribution | Acceptance


@dataclass(frozen=True)
class Cutoffs:
    """How far it is known what a policy keeps.

    Attributes:
        policy: What to keep.
        rule: State of the rule's cutoff by group (`CORPUS_GROUP`, or every source with scored
            documents). Empty while a minimum that counts toward the target is being found.
        minimum: Boundary by source of its best documents, which are kept whatever the rule.
        documents: Number of scored documents in the corpus.
        tokens: Number of their tokens.
        own: Whether the corpus counted is the one selected from, and not a reference.
    """

    policy: Policy
    rule: Mapping[str, Group]
    minimum: Mapping[str, Boundary]
    documents: int
    tokens: int
    own: bool = True

    @classmethod
    def begin(
        cls,
        policy: Policy,
        histogram: Histogram,
        sources: Mapping[str, tuple[int, int]],
        *,
        own: bool = True,
    ) -> Cutoffs:
        """Returns the cutoffs before the first round.

        Args:
            policy: What to keep.
            histogram: Histogram of all scored documents at level 0.
            sources: Number of scored documents and tokens of every source.
            own: Whether the corpus counted is the one selected from; False for a reference.

        Raises:
            SelectionError: A weight names a source that the corpus does not have.
        """
        unknown = sorted(set(policy.weights) - set(sources))
        if unknown:
            known = ", ".join(repr(source) for source in sorted(sources)[:20])
            raise SelectionError(
                f"no source is called {unknown[0]!r}, which has a weight; the corpus has {known}"
            )

        # The rule: one group per source, or one for the corpus, unless it waits for the minimum.
        scored = {source: counts for source, counts in sources.items() if counts[0]}
        rule: dict[str, Group] = {}
        if policy.per is Scope.SOURCE:
            for source, (documents, tokens) in scored.items():
                rule[source] = cls._group(policy, source, documents, tokens)
        elif not policy.counts_minimum:
            rule[CORPUS_GROUP] = (
                Distribution.begin(histogram)
                if isinstance(policy.rule, BatchTopK)
                else Boundary.begin(policy.rule, histogram)
            )

        minimum: dict[str, Boundary] = {}
        if policy.minimum and not cls._in_targets(policy):
            for source, (documents, _) in scored.items():
                minimum[source] = Boundary.whole(
                    Unit.DOCUMENTS, min(policy.minimum, documents), documents
                )

        start = cls(policy, rule, minimum, histogram.documents, histogram.tokens, own)
        return start._settled()

    @staticmethod
    def _in_targets(policy: Policy) -> bool:
        """Returns whether a source's target can include its minimum: both count its best."""
        return policy.per is Scope.SOURCE and isinstance(policy.rule, KeepFraction | KeepCount)

    @classmethod
    def _group(cls, policy: Policy, source: str, documents: int, tokens: int) -> Group:
        rule = policy.rule_of(source)
        if isinstance(rule, BatchTopK):
            return Distribution.unknown(documents)
        if isinstance(rule, Threshold):
            return Boundary.begin(rule, Histogram.empty())
        return Boundary.whole(
            rule.unit, cls.target_of(policy, source, documents, tokens), documents
        )

    @classmethod
    def target_of(cls, policy: Policy, source: str, documents: int, tokens: int) -> int:
        """Returns the target of one source, in the unit of the rule."""
        target = policy.rule_of(source).target(documents, tokens)
        return max(target, min(policy.minimum, documents)) if cls._in_targets(policy) else target

    @classmethod
    def fixed(cls, policy: Policy, group: Group, documents: int) -> Cutoffs:
        """Returns cutoffs for the whole corpus that a reference has already decided."""
        return cls(policy, {CORPUS_GROUP: group}, {}, documents, 0, own=False)

    def _settled(self) -> Cutoffs:
        """Returns the cutoffs with finished states completed and dependent states started."""
        # A complete distribution becomes the acceptance that decides.
        rule = dict(self.rule)
        for group, state in rule.items():
            if isinstance(state, Distribution) and state.step is Step.NOTHING:
                assert isinstance(self.policy.rule, BatchTopK)
                rule[group] = state.acceptance(self.policy.rule, own=self.own)

        # Once the minimum is found, the rule fills the rest of the corpus's target.
        if (
            not rule
            and self.policy.counts_minimum
            and all(b.step is Step.NOTHING for b in self.minimum.values())
        ):
            kept = sum(boundary.kept for boundary in self.minimum.values())
            kept_tokens = sum(boundary.kept_tokens for boundary in self.minimum.values())
            unit = self.policy.rule.unit
            target = self.policy.rule.target(self.documents, self.tokens)
            left = max(target - (kept if unit is Unit.DOCUMENTS else kept_tokens), 0)
            rule[CORPUS_GROUP] = Boundary.whole(unit, left, self.documents - kept)

        return replace(self, rule=rule)

    # Questions and answers.

    @functools.cached_property
    def _open(self) -> dict[Question, Boundary | Distribution]:
        """The states that are not decided yet, by question."""
        open_states: dict[Question, Boundary | Distribution] = {}
        for family, groups in ((Family.RULE, self.rule), (Family.MINIMUM, self.minimum)):
            for group, state in groups.items():
                if not isinstance(state, Acceptance) and state.step is not Step.NOTHING:
                    open_states[family, group] = state
        return open_states

    @functools.cached_property
    def _sorted(self) -> frozenset[Question]:
        """The questions answered by keys: the smallest first, as many as one machine can sort."""
        waiting = sorted(
            (state.undecided, question)
            for question, state in self._open.items()
            if isinstance(state, Boundary) and state.step is Step.SORT
        )

        chosen, total = set(), 0
        for undecided, question in waiting:
            state = self._open[question]
            total += undecided
            # At the last level only the keys distinguish documents.
            if total <= descent.SORT_LIMIT or state.level == LAST_LEVEL:
                chosen.add(question)
        return frozenset(chosen)

    @property
    def done(self) -> bool:
        """Whether every document is decided."""
        return not self._open and bool(self.rule or self.policy.per is Scope.SOURCE)

    @property
    def _rest_only(self) -> bool:
        """Whether the rule now fills the target with documents that the minimum does not keep."""
        return self.policy.counts_minimum and bool(self.rule)

    def from_summary(self, histograms: Mapping[str, Histogram]) -> Answers | None:
        """Answers this round's questions for some splits without reading their documents.

        Args:
            histograms: Level-0 histograms of the splits by source.

        Returns:
            The answers; None if a question goes deeper than level 0.
        """
        if self._rest_only or any(state.level for state in self._open.values()):
            return None
        answers = {
            question: histograms[question[1]]
            for question in self._open
            if question[1] in histograms
        }
        return {**answers}

    def concerns(self, histograms: Mapping[str, Histogram]) -> bool:
        """Returns whether some splits can contain an undecided document.

        Args:
            histograms: Level-0 histograms of the splits by source.
        """
        whole: Histogram | None = None
        for (_, group), state in self._open.items():
            # Choose the histogram that covers the group; the corpus's is merged once.
            if group == CORPUS_GROUP and self.policy.per is Scope.CORPUS and group in self.rule:
                whole = whole or Histogram.merge(histograms.values())
                histogram = whole
            elif group in histograms:
                histogram = histograms[group]
            else:
                continue

            # Look for a document under the digit that the earlier levels narrowed down to.
            if state.level == 0:
                return True
            if isinstance(state, Boundary):
                if histogram.holds(state.first_digit()):
                    return True
            elif np.isin(state.first_digits(), histogram.bins_K).any():
                return True
        return False

    def answers(self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str]) -> Answers:
        """Answers this round's questions for some documents.

        Args:
            keys: Rank keys of N scored documents.
            codes_N: Source of each document, an index into `names`.
            names: Names of the sources.
        """
        answers: Answers = {}
        for family, groups in ((Family.RULE, self.rule), (Family.MINIMUM, self.minimum)):
            open_groups = {group for asked_family, group in self._open if asked_family is family}
            if not open_groups:
                continue

            # The corpus is one group: no document needs to be assigned to a source.
            if family is Family.RULE and self.policy.per is Scope.CORPUS:
                corpus_keys = (
                    keys.take(~self._kept_by_minimum(keys, codes_N, names))
                    if self._rest_only
                    else keys
                )
                answers.update(self._answer(family, CORPUS_GROUP, corpus_keys))
                continue

            # A group without a question has both ends at 0, and so no keys between them.
            open_S = np.asarray([name in open_groups for name in names], bool)
            states = [groups.get(name) for name in names]
            low = Ends.of(
                [
                    self._low(state) if is_open else 0
                    for state, is_open in zip(states, open_S, strict=True)
                ]
            )
            high = Ends.of(
                [
                    self._high(state) if is_open else 0
                    for state, is_open in zip(states, open_S, strict=True)
                ]
            )

            undecided_N = keys.below_each(high, codes_N) & ~keys.below_each(low, codes_N)
            for code, group_keys in _slices(keys, codes_N, undecided_N):
                answers.update(self._answer(family, names[code], group_keys))
        return answers

    @staticmethod
    def _low(state: Group | None) -> int:
        return state.low if isinstance(state, Boundary) else 0

    @staticmethod
    def _high(state: Group | None) -> int:
        return state.high if isinstance(state, Boundary) else 1 << ranking.KEY_BITS

    def _answer(
        self, family: Family, group: str, keys: RankKeys
    ) -> Iterator[tuple[Question, Answer]]:
        question = (family, group)
        state = self._open[question]
        if isinstance(state, Distribution):
            counted = state.count(keys)
            if len(counted.bins_K):
                yield question, counted
            return
        undecided = state.undecided_of(keys)
        if len(undecided):
            yield (
                question,
                undecided if question in self._sorted else Histogram.of(undecided, state.level),
            )

    def advance(self, answers: Answers) -> Cutoffs:
        """Returns the cutoffs after a round.

        Args:
            answers: Merged answers of all workers.

        Raises:
            SelectionError: The answers contradict the counts of an earlier round.
        """
        changed: dict[Family, dict[str, Any]] = {
            Family.RULE: dict(self.rule),
            Family.MINIMUM: dict(self.minimum),
        }
        for question, state in self._open.items():
            family, group = question
            if question in self._sorted:
                assert isinstance(state, Boundary)
                keys = answers.get(question, RankKeys.empty())
                assert isinstance(keys, RankKeys)
                changed[family][group] = state.settle(keys, through_equals=family is Family.MINIMUM)
            else:
                histogram = answers.get(question, Histogram.empty())
                assert isinstance(histogram, Histogram)
                changed[family][group] = state.descend(histogram)

        return replace(self, rule=changed[Family.RULE], minimum=changed[Family.MINIMUM])._settled()

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
            kept_N = self._kept_by(self.rule[CORPUS_GROUP], keys, seed)
        else:
            states = [self.rule.get(name) for name in names]
            ends = Ends.of(
                [state.end or 0 if isinstance(state, Boundary) else 0 for state in states]
            )
            kept_N = keys.below_each(ends, codes_N)
            drawn_S = np.asarray([isinstance(state, Acceptance) for state in states], bool)
            if drawn_S.any():
                for code, rows_M in _row_slices(codes_N, drawn_S[codes_N]):
                    state = states[code]
                    assert isinstance(state, Acceptance)
                    kept_N[rows_M] = state.accepts(keys.take(rows_M), seed)

        if self.minimum:
            kept_N = kept_N | self._kept_by_minimum(keys, codes_N, names)
        return kept_N

    def _kept_by_minimum(
        self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str]
    ) -> NDArray[np.bool_]:
        ends = [self.minimum[name].end if name in self.minimum else 0 for name in names]
        return keys.below_each(Ends.of([end or 0 for end in ends]), codes_N)

    @staticmethod
    def _kept_by(state: Group, keys: RankKeys, seed: int) -> NDArray[np.bool_]:
        if isinstance(state, Acceptance):
            return state.accepts(keys, seed)
        if not isinstance(state, Boundary) or state.end is None:
            raise SelectionError("the cutoff is not known after the last round of the descent")
        return keys.below(state.end)

    def equals(self) -> dict[str, tuple[int, int]]:
        """Returns the cutoffs that fall between documents with equal keys.

        Returns:
            By group: the key, and how many of its documents to keep.
        """
        return {
            group: (state.end, state.left)
            for group, state in self.rule.items()
            if isinstance(state, Boundary) and state.end is not None and state.left
        }

    def counted(self) -> tuple[int, int] | None:
        """Returns the number of documents and tokens kept, if the descent has counted them.

        Returns:
            The two numbers; None for a threshold, a draw or a reference's cutoff, which are only
            counted when they are applied.
        """
        if not self.own:
            return None
        states: list[Group] = list(self.rule.values())
        if self.minimum:
            if not self.policy.counts_minimum:
                return None
            states += self.minimum.values()

        kept = kept_tokens = 0
        for state in states:
            if not isinstance(state, Boundary) or not state.counted:
                return None
            kept += state.kept
            kept_tokens += state.kept_tokens
        return kept, kept_tokens

    def expected(self) -> tuple[float, float] | None:
        """Returns the expected number of documents that a draw accepts, and its standard deviation.

        Returns:
            The two numbers; None if the rule does not draw, or a minimum adds documents to it.
        """
        states = list(self.rule.values())
        total = variance = 0.0
        for state in states:
            if (
                not isinstance(state, Acceptance)
                or state.expected is None
                or state.deviation is None
            ):
                return None
            total += state.expected
            variance += state.deviation**2
        return (total, variance**0.5) if states and not self.minimum else None

    def to_json(self) -> dict[str, Any]:
        """Returns the cutoffs as JSON fields for the manifest."""
        if self.policy.per is Scope.CORPUS:
            fields = _describe(self.rule[CORPUS_GROUP])
        else:
            fields = {
                "sources": {source: _describe(state) for source, state in sorted(self.rule.items())}
            }
        if self.minimum:
            fields["minimum"] = {
                source: _describe(state) for source, state in sorted(self.minimum.items())
            }
        return fields


def _describe(state: Group) -> dict[str, Any]:
    if isinstance(state, Acceptance):
        return batch_top_k.describe(state)
    if isinstance(state, Boundary):
        return {"rank_key": f"{state.end:x}", "lowest_score": state.lowest_score()}
    raise SelectionError("the cutoff is not known after the last round of the descent")


def _row_slices(
    codes_N: NDArray[np.int64], mask_N: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields the row numbers of a mask, code by code."""
    rows_M = np.flatnonzero(mask_N)
    rows_M = rows_M[np.argsort(codes_N[rows_M], kind="stable")]
    codes, firsts = np.unique(codes_N[rows_M], return_index=True)
    yield from zip(codes.tolist(), np.split(rows_M, firsts[1:]) if len(rows_M) else [], strict=True)


def _slices(
    keys: RankKeys, codes_N: NDArray[np.int64], mask_N: NDArray[np.bool_]
) -> Iterator[tuple[int, RankKeys]]:
    """Yields the keys of a mask, code by code."""
    for code, rows_M in _row_slices(codes_N, mask_N):
        yield code, keys.take(rows_M)


def merge_answers(parts: Iterable[Answers]) -> Answers:
    """Merges the answers of several workers, with the same result in any order and grouping."""
    gathered: dict[Question, list[Answer]] = {}
    for part in parts:
        for question, answer in part.items():
            gathered.setdefault(question, []).append(answer)

    merged: Answers = {}
    for question, several in gathered.items():
        if len(several) == 1:
            merged[question] = several[0]
        elif isinstance(several[0], RankKeys):
            merged[question] = RankKeys.concatenate(
                one for one in several if isinstance(one, RankKeys)
            )
        else:
            merged[question] = Histogram.merge(one for one in several if isinstance(one, Histogram))
    return merged
