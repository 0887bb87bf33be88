"""`rule.json` and `manifest.json` of a selection: what it was asked for, and what it kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from datarater.pipelines.errors import RunFolderMismatchError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.identity import CommittedIdentity, differences
from datarater.pipelines.run_folder.kept_counts import KeptCounts
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    SelectionFolder,
    now,
    read_json,
    versions,
)
from datarater.pipelines.run_folder.ranking_options import JoinCounts, RankingOptions
from datarater.rater_model.counted import counted
from datarater.rater_model.json_codec import IF_SET, to_plain


@dataclasses.dataclass(frozen=True)
class RuleFields:
    """A rule: its kind and its number as exact text."""

    kind: str
    value: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFields:
    """The tokenizer that output files are written with.

    Attributes:
        digest: SHA-256 of its `tokenizer.json`, or the name of the tokenizer of bytes.
        vocabulary_size: Number above its highest id.
        end_token: Token that follows each document; "" for none.
        end_id: Id of that token; None for none.
    """

    digest: str
    vocabulary_size: int
    end_token: str = dataclasses.field(default="", metadata=IF_SET)
    end_id: int | None = dataclasses.field(default=None, metadata=IF_SET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """The content of `rule.json`: all options that change what is kept or written.

    Attributes:
        rule: How much to keep.
        per: Whether the rule applies to the corpus or to each source.
        source_weights: Factors by source, as exact text.
        min_per_source: Minimum number of documents to keep from each source.
        reference: Run folder or rater checkpoint whose distribution of scores decides; None for
            that of the run itself.
        seed: Seed for tie-breaking and for the draw of a batch top-K.
        output_format: A value of `--output_format`.
        output_shard_bytes: Approximate size of an output file in bytes of kept text.
        second_read_bytes: Stored bytes of input above which an output file is written in pieces;
            None for the default.
        format: Version of the format.
        plans: Number of plans that the documents belong to; more than 1 after `--append`.
        mirrors_paths: Whether attributes files have the names of their document files; those of
            version 0.1.0 are numbered.
        tokenizer: Tokenizer of the output files; None if they have texts.
        ranking: How documents are filtered, ranked and measured; None if the score of the run alone
            ranks them.
    """

    rule: RuleFields
    per: str
    source_weights: dict[str, str]
    min_per_source: int
    reference: str | None
    seed: int
    output_format: str
    output_shard_bytes: int
    second_read_bytes: int | None = dataclasses.field(default=None, metadata=IF_SET)
    format: int = FORMAT_VERSION
    plans: int = dataclasses.field(default=1, metadata=IF_SET)
    mirrors_paths: bool = dataclasses.field(default=False, metadata=IF_SET)
    tokenizer: TokenizerFields | None = dataclasses.field(default=None, metadata=IF_SET)
    ranking: RankingOptions | None = dataclasses.field(default=None, metadata=IF_SET)


@dataclasses.dataclass
class ManifestCounts(KeptCounts):
    """What a selection keeps, drops and rejects.

    Attributes:
        rejected_by_reason: Numbers of the rejected records, by reason.
        excluded_by_reason: Numbers of the dropped documents that the ranking excludes, by reason.
    """

    rejected_by_reason: dict[str, int] = dataclasses.field(default_factory=dict)
    excluded_by_reason: dict[str, int] = dataclasses.field(default_factory=dict, metadata=IF_SET)


@dataclasses.dataclass(kw_only=True)
class MatchedCounts(JoinCounts):
    """What was found in a joined table, and of how many documents.

    Attributes:
        matched: Number of scored documents that the table has a row of.
        missing: Number of scored documents that it has no row of.
    """

    matched: int
    missing: int

    def describe(self, name: str) -> str:
        """Describes in one line what was found in the table of a name."""
        documents = counted(self.matched + self.missing, "document")
        line = f"joined {name}: {counted(self.rows, 'row')}, of {self.matched:,} of {documents}"
        if self.duplicates:
            line += f"; {counted(self.duplicates, 'row')} with the key of an earlier one left out"
        if self.without_key:
            line += f"; {counted(self.without_key, 'row')} without a key left out"
        return line


@dataclasses.dataclass(frozen=True)
class Draw:
    """What a rule that draws was expected to keep, and what it kept."""

    expected: float
    standard_deviation: float
    actual: int


@dataclasses.dataclass(frozen=True)
class KeptFile:
    """A file of kept documents, or one that describes such files.

    Attributes:
        path: Path in the selection's folder; in a batch's record, the whole path.
        format: Ending of its name.
        documents: Number of documents; 0 for a file that has none, such as an index.
        bytes: Size of the file.
        sha256: Digest of the file.
        input: Path of the input file that an attributes file belongs to; "" for all others.
    """

    path: str
    format: str
    documents: int
    bytes: int
    sha256: str
    input: str = dataclasses.field(default="", metadata=IF_SET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(SelectionOptions):
    """The content of `manifest.json`.

    Attributes:
        name: Name of the selection.
        cutoff: Cutoffs for people (`Cutoffs.to_json`).
        draw: What a rule that draws was expected to keep; None for all other rules.
        counts: Counts of all records.
        scored: Number of documents with a score.
        sources: Counts by source.
        joins: Counts of the joined tables, by name.
        files: Files of kept documents.
        identity: Identity of the run.
        rater: Digest of the rater.
        versions: Versions of datarater, Beam and JAX.
        finished: Time in UTC, for people.
    """

    name: str
    cutoff: dict[str, Any]
    draw: Draw | None = dataclasses.field(default=None, metadata=IF_SET)
    counts: ManifestCounts
    scored: int
    sources: dict[str, KeptCounts]
    joins: dict[str, MatchedCounts] = dataclasses.field(default_factory=dict, metadata=IF_SET)
    files: tuple[KeptFile, ...]
    identity: CommittedIdentity
    rater: str
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    finished: str = dataclasses.field(default_factory=now)

    @property
    def rank_key(self) -> int | None:
        """The corpus's cutoff as a rank key; None if the rule has none for the whole corpus."""
        key = self.cutoff.get("rank_key")
        return None if key is None else int(key, 16)


@dataclasses.dataclass(frozen=True)
class MixturePart:
    """What a source contributes to the kept documents.

    Attributes:
        documents: Number of kept documents.
        copies: Number of documents that are written: with all copies.
        tokens: Tokens of the kept documents.
        copied_tokens: Tokens that are written: with those of all copies.
        weight: Share of the tokens that are written.
        epochs: Average number of times that a token of the source's kept documents is written.
    """

    documents: int
    copies: int
    tokens: int
    copied_tokens: int
    weight: float
    epochs: float


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The content of `mixture.json`: the shares of the sources, as a trainer takes them.

    Attributes:
        tokens: Tokens that are written of all sources.
        sources: Sources of which something is kept, by name.
        format: Version of the format.
    """

    tokens: int
    sources: dict[str, MixturePart]
    format: int = FORMAT_VERSION

    @classmethod
    def of(cls, sources: Mapping[str, KeptCounts]) -> Mixture:
        """Returns the mixture of a selection, given what it keeps of every source."""
        written = {name: one.kept_tokens + one.repeat_tokens for name, one in sources.items()}
        total = sum(written.values())
        return cls(
            total,
            {
                name: MixturePart(
                    counts.kept,
                    counts.written,
                    counts.kept_tokens,
                    written[name],
                    written[name] / total if total else 0.0,
                    written[name] / counts.kept_tokens if counts.kept_tokens else 0.0,
                )
                for name, counts in sorted(sources.items())
                if counts.kept
            },
        )


def read_manifest(selection: SelectionFolder) -> Manifest | None:
    """Reads the manifest of a published selection; None if it is not published."""
    if not commits.exists(selection.success_path):
        return None
    return read_json(selection.manifest_path, Manifest)


def check_rule(selection: SelectionFolder, requested: SelectionOptions) -> bool:
    """Refuses a selection whose name is taken by another rule.

    Returns:
        Whether the same rule is committed already.

    Raises:
        RunFolderMismatchError: The rules differ; the message names the differences.
    """
    committed = read_json(selection.rule_path, SelectionOptions)
    if committed is None:
        return False
    # A selection that version 0.1.0 began keeps its names.
    requested = dataclasses.replace(requested, mirrors_paths=committed.mirrors_paths)
    if dataclasses.replace(committed, plans=requested.plans) == requested != committed:
        raise RunFolderMismatchError(
            f"{selection.path} was selected before files were appended to the run folder: give the "
            "selection from all documents another name with --name"
        )
    lines = differences(to_plain(requested), to_plain(committed))
    if lines:
        raise RunFolderMismatchError(
            f"{selection.path} is another selection: {'; '.join(lines)}. Give this one another "
            "name with --name"
        )
    return True


def forget_unfinished(selection: SelectionFolder) -> None:
    """Removes a selection that failed, so that its name is free for another rule.

    A selection with a manifest stays. The rule goes last: until then the same command resumes it.

    Args:
        selection: The selection's folder.

    Raises:
        RunFolderError: A file cannot be removed.
    """
    if commits.exists(selection.manifest_path):
        return
    folders = [selection.path]
    for folder in folders:
        folders += [f"{folder}/{name}" for name in commits.list_subfolders(folder)]
        for entry in commits.list_folder(folder):
            if entry.path.rsplit("/", 1)[-1] != selection.rule_path.rsplit("/", 1)[-1]:
                commits.remove(entry.path)
    commits.remove(selection.rule_path)
