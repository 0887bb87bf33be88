"""Cutoffs: one rule over the whole corpus or over each source, with weights and a minimum, found in one descent.

A `Policy` says what to keep; `Cutoffs` is how far that is known. Both are small, and go between
rounds as a side
input: each round every worker answers the same questions (`Cutoffs.answers`), the answers are
merged (`merge_answers`), and `Cutoffs.advance` puts them in place. A question is a histogram over
one digit of the undecided documents' rank keys, or the keys themselves where few are left; there is
one for each group, a group being the corpus or a source. What was found decides every document:
`Cutoffs.keeps`.

A minimum of M documents a source keeps the best M of each whatever the rule says. Over the corpus,
the rule's target counts them: they are found first, and the descent then fills what is left with
the best of the rest.
"""

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
    """What a question is asked for."""

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
        policy: what to keep.
        rule: by group (`CORPUS_GROUP`, or every source with scored documents): how far the rule's
            cutoff is known. Empty while the minimum is looked for that it counts.
        minimum: by source: the cutoff of its best few, which are kept whatever the rule says.
        documents: scored documents of the corpus.
        tokens: their tokens.
        own: whether the corpus that is counted is the one selected from, and not a reference.
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
    ) -> "Cutoffs":
        """Before the first round.

        Args:
            policy: what to keep.
            histogram: of all scored documents, level 0.
            sources: scored documents and tokens of every source.
            own: False where the corpus counted is a reference for another.

        Raises:
            SelectionError: a weight is given to a source that the corpus does not have.
        """
        unknown = sorted(set(policy.weights) - set(sources))
        if unknown:
            known = ", ".join(repr(source) for source in sorted(sources)[:20])
            raise SelectionError(
                f"no source is called {unknown[0]!r}, which has a weight; the corpus has {known}"
            )
        scored = {source: counts for source, counts in sources.items() if counts[0]}
        rule: dict[str, Group] = {}
        minimum: dict[str, Boundary] = {}
        if policy.per is Scope.SOURCE:
            for source, (documents, tokens) in scored.items():
                rule[source] = cls._group(policy, source, documents, tokens)
        elif not policy.counts_minimum:
            rule[CORPUS_GROUP] = (
                Distribution.begin(histogram)
                if isinstance(policy.rule, BatchTopK)
                else Boundary.begin(policy.rule, histogram)
            )
        if policy.minimum and not cls._in_targets(policy):
            for source, (documents, _) in scored.items():
                minimum[source] = Boundary.whole(
                    Unit.DOCUMENTS, min(policy.minimum, documents), documents
                )
        start = cls(policy, rule, minimum, histogram.documents, histogram.tokens, own)
        return start._settled()

    @staticmethod
    def _in_targets(policy: Policy) -> bool:
        """Whether each source's own target can hold the minimum: both keep its best so many documents."""
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
        """What a source's own target is, in the unit of the rule."""
        target = policy.rule_of(source).target(documents, tokens)
        return max(target, min(policy.minimum, documents)) if cls._in_targets(policy) else target

    @classmethod
    def fixed(cls, policy: Policy, group: Group, documents: int) -> "Cutoffs":
        """A cutoff for the corpus that a reference has settled."""
        return cls(policy, {CORPUS_GROUP: group}, {}, documents, 0, own=False)

    def _settled(self) -> "Cutoffs":
        """Turns what is known to its end into what decides, and begins what waited for it."""
        rule = dict(self.rule)
        for group, state in rule.items():
            if isinstance(state, Distribution) and state.step is Step.NOTHING:
                assert isinstance(self.policy.rule, BatchTopK)
                rule[group] = state.acceptance(self.policy.rule, own=self.own)
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

    # --- what is asked ---

    @functools.cached_property
    def _open(self) -> dict[Question, Boundary | Distribution]:
        found: dict[Question, Boundary | Distribution] = {}
        for family, groups in ((Family.RULE, self.rule), (Family.MINIMUM, self.minimum)):
            for group, state in groups.items():
                if not isinstance(state, Acceptance) and state.step is not Step.NOTHING:
                    found[family, group] = state
        return found

    @functools.cached_property
    def _sorted(self) -> frozenset[Question]:
        """The questions that are answered by keys: the smallest first, as many as one machine sorts."""
        waiting = sorted(
            (state.undecided, question)
            for question, state in self._open.items()
            if isinstance(state, Boundary) and state.step is Step.SORT
        )
        chosen, total = set(), 0
        for undecided, question in waiting:
            state = self._open[question]
            total += undecided
            # At the last level nothing but keys tells documents apart.
            if total <= descent.SORT_LIMIT or state.level == LAST_LEVEL:
                chosen.add(question)
        return frozenset(chosen)

    @property
    def done(self) -> bool:
        """Whether every document is decided."""
        return not self._open and bool(self.rule or self.policy.per is Scope.SOURCE)

    @property
    def _rest_only(self) -> bool:
        return self.policy.counts_minimum and bool(self.rule)

    def from_summary(self, histograms: Mapping[str, Histogram]) -> Answers | None:
        """The answers for some splits out of their level-0 histograms by source, without looking at a document.

        Returns:
            None where the questions go deeper.
        """
        if self._rest_only or any(state.level for state in self._open.values()):
            return None
        found = {
            question: histograms[question[1]]
            for question in self._open
            if question[1] in histograms
        }
        return {**found}

    def concerns(self, histograms: Mapping[str, Histogram]) -> bool:
        """Whether splits with these level-0 histograms by source can hold an undecided document."""
        whole: Histogram | None = None
        for (_, group), state in self._open.items():
            if group == CORPUS_GROUP and self.policy.per is Scope.CORPUS and group in self.rule:
                whole = whole or Histogram.merge(histograms.values())
                histogram = whole
            elif group in histograms:
                histogram = histograms[group]
            else:
                continue
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
            keys: of N scored documents.
            codes_N: the source of each, an index into names.
            names: of sources.
        """
        found: Answers = {}
        for family, groups in ((Family.RULE, self.rule), (Family.MINIMUM, self.minimum)):
            asked = {group for asked_family, group in self._open if asked_family is family}
            if not asked:
                continue
            if family is Family.RULE and self.policy.per is Scope.CORPUS:
                mine = (
                    keys.take(~self._kept_by_minimum(keys, codes_N, names))
                    if self._rest_only
                    else keys
                )
                found.update(self._answer(family, CORPUS_GROUP, mine))
                continue
            open_S = np.asarray([name in asked for name in names], bool)
            states = [groups.get(name) for name in names]
            # What is not asked for has both ends at 0, and so nothing between them.
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
            wanted_N = keys.below_each(high, codes_N) & ~keys.below_each(low, codes_N)
            for code, mine in _slices(keys, codes_N, wanted_N):
                found.update(self._answer(family, names[code], mine))
        return found

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

    def advance(self, answers: Answers) -> "Cutoffs":
        """After a round.

        Args:
            answers: of all workers, merged.

        Raises:
            SelectionError: they count other documents than were counted before.
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

    # --- what is decided ---

    def _kept_by_minimum(
        self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str]
    ) -> NDArray[np.bool_]:
        ends = [self.minimum[name].end if name in self.minimum else 0 for name in names]
        return keys.below_each(Ends.of([end or 0 for end in ends]), codes_N)

    def keeps(
        self, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str], seed: int
    ) -> NDArray[np.bool_]:
        """Which documents are kept.

        Args:
            keys: of N scored documents.
            codes_N: the source of each, an index into names.
            names: of sources.
            seed: of the selection.

        Raises:
            SelectionError: not everything is decided yet.
        """
        if not self.done:
            raise SelectionError("the cutoff is not known after the last round of the descent")
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

    @staticmethod
    def _kept_by(state: Group, keys: RankKeys, seed: int) -> NDArray[np.bool_]:
        if isinstance(state, Acceptance):
            return state.accepts(keys, seed)
        if not isinstance(state, Boundary) or state.end is None:
            raise SelectionError("the cutoff is not known after the last round of the descent")
        return keys.below(state.end)

    def equals(self) -> dict[str, tuple[int, int]]:
        """Where a cutoff falls between documents of one key: by group the key, and how many of them are kept."""
        return {
            group: (state.end, state.left)
            for group, state in self.rule.items()
            if isinstance(state, Boundary) and state.end is not None and state.left
        }

    def counted(self) -> tuple[int, int] | None:
        """Documents and tokens that are kept, where the descent has counted them.

        Returns:
            None for rules whose number shows only in the end: a threshold, a draw, a reference's
            cutoff.
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
        """The expected number of documents that a draw accepts, and its standard deviation."""
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
        """What was found, for the manifest."""
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
    codes_N: NDArray[np.int64], wanted_N: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The wanted rows, code by code."""
    rows_M = np.flatnonzero(wanted_N)
    rows_M = rows_M[np.argsort(codes_N[rows_M], kind="stable")]
    codes, firsts = np.unique(codes_N[rows_M], return_index=True)
    yield from zip(codes.tolist(), np.split(rows_M, firsts[1:]) if len(rows_M) else [], strict=True)


def _slices(
    keys: RankKeys, codes_N: NDArray[np.int64], wanted_N: NDArray[np.bool_]
) -> Iterator[tuple[int, RankKeys]]:
    for code, rows_M in _row_slices(codes_N, wanted_N):
        yield code, keys.take(rows_M)


def merge_answers(parts: Iterable[Answers]) -> Answers:
    """The answers of several workers together, in any order and grouping."""
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
