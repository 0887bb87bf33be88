"""Requests: the parameters of a scoring and of a selection, as values that can be pickled.

A command turns its flags into a `ScoringRequest`, a `DeduplicationRequest`, a `SelectionRequest` or
several of them, which together are its `Work`. The graph and its workers need nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from datarater.pipelines.bad_splits import FAIL, REJECT
from datarater.pipelines.dedup.neighbors import MAX_COMPARED, MAX_ENTRIES
from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.graph.inputs import Inputs
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.duplicates import DuplicatesOptions, default_name
from datarater.pipelines.run_folder.identity import Identity, InputsDigest, RunOptions
from datarater.pipelines.run_folder.layout import (
    DuplicatesFolder,
    RankingFolder,
    RunFolder,
    SelectionFolder,
)
from datarater.pipelines.run_folder.manifest import RuleFields, SelectionOptions, TokenizerFields
from datarater.pipelines.run_folder.many_sources import MAX_SOURCES
from datarater.pipelines.run_folder.plan import SPLITS_PER_GROUP
from datarater.pipelines.run_folder.ranking_options import RankingOptions
from datarater.pipelines.run_folder.scored import last_scoring_path
from datarater.pipelines.selection.cutoffs import SORT_LIMIT
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.rules import KeepFraction
from datarater.rater_model.checkpoint import (
    RATER_FILE,
    CheckpointError,
    RaterCheckpoint,
    load_rater,
)

PARTS_PER_GROUP = 10_000
FILES_PER_SPLIT = 1_000
FILES_PER_CHUNK = 1_000
SPLITS_PER_WORKER = 4
"""Number of splits of packed files that each worker gets at least, if they are not tiny."""
MIN_PACKED_BYTES = 64 * 2**10
"""Stored bytes below which a split of packed files is tiny."""


@dataclasses.dataclass(frozen=True)
class ScoringRequest:
    """Parameters of one scoring.

    All but the first four only change the cost of a run, not what it keeps.

    Attributes:
        inputs: The input files.
        rater: Path of the rater checkpoint.
        output: Path of the run folder.
        options: Every option that changes which documents exist or what they score.
        max_rejected_fraction: Maximum share of records that may be rejected.
        max_read_amplification: Maximum number of times that a big compressed stream may be unpacked
            so that several workers can share it.
        workers_to_fill: Number of workers that the plan should keep busy.
        on_bad_split: What happens with a split that cannot be read or that ends its worker
            repeatedly, one of `datarater.pipelines.bad_splits.ON_BAD_SPLIT`.
        max_sources: Maximum number of sources that are counted apart.
        retry_seconds: Seconds before each further try of a split that cannot be read, if it would
            be rejected then.
        launch: Id of the launch that does the work; "" for none.
        slots: Number of worker processes of a supervised local run, which take splits from a shared
            list and mark them; 0 if the runner deals them out.
        kept_leases: Paths of the launch's leases that the workers keep.
        reads_ahead: Whether a worker's CPU has a spare core to read on while it scores.
        splits_per_group: Maximum number of splits in a group of the plan.
        parts_per_group: Maximum number of parts of files in the splits of a group.
        files_per_split: Maximum number of small files in a split.
        files_per_chunk: Number of files that are planned together.
        append: Whether input files may be new to the run folder, and others left out.
        plans: Number of plans of the run folder once all files are planned; 0 if it is not known.
        student: Path of the student that scores first; "" without one.
        other_raters: Paths of the raters that score beside the first one, by name.
    """

    inputs: Inputs
    rater: str
    output: str
    options: RunOptions
    max_rejected_fraction: float = 1.0
    max_read_amplification: float = 4.0
    workers_to_fill: int = 1
    on_bad_split: str = FAIL
    max_sources: int = MAX_SOURCES
    retry_seconds: tuple[float, ...] = (1.0, 10.0)
    launch: str = ""
    slots: int = 0
    kept_leases: tuple[str, ...] = ()
    reads_ahead: bool = False
    splits_per_group: int = SPLITS_PER_GROUP
    parts_per_group: int = PARTS_PER_GROUP
    files_per_split: int = FILES_PER_SPLIT
    files_per_chunk: int = FILES_PER_CHUNK
    append: bool = False
    plans: int = 0
    student: str = ""
    other_raters: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def pack_bytes(self, total: int) -> int:
        """Returns the stored bytes of small files that share a split.

        Every worker gets several splits, unless they would be tiny.

        Args:
            total: Stored bytes of all files.
        """
        share = total // (SPLITS_PER_WORKER * self.workers_to_fill)
        return min(self.options.split_bytes, max(share, MIN_PACKED_BYTES))

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    @property
    def first_pass(self) -> ScoringRequest:
        """The scoring of the same documents by the student, in a run folder of its own."""
        cascade = self.options.cascade
        assert cascade is not None
        return dataclasses.replace(
            self,
            rater=self.student,
            output=self.folder.first_pass_path,
            options=dataclasses.replace(self.options, rater=cascade.student, cascade=None),
            student="",
            plans=0,
        )

    @property
    def rejects_bad_splits(self) -> bool:
        """Whether a split that cannot be scored is rejected, and the run continues."""
        return self.on_bad_split == REJECT

    def identity(self, inputs: InputsDigest) -> Identity:
        """Returns the run's identity, given what identifies its input files."""
        return Identity(inputs=inputs, **vars(self.options))


def load_checkpoint(flag: str, path: str) -> RaterCheckpoint:
    """Returns the rater checkpoint that a flag names, after checking all of it.

    Raises:
        UsageError: There is no rater at the path.
        CurationError: The rater cannot be loaded; the message says why.
    """
    try:
        return load_rater(path)
    except (CheckpointError, OSError) as error:
        absent = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        if absent and not commits.exists(f"{path}/{RATER_FILE}"):
            raise UsageError(f"--{flag}: {error}") from error
        raise CurationError(f"--{flag}: {error}") from error


ROWS_PER_BUCKET = 2**18
"""Number of rows of a joined table that a worker has in memory at a time, approximately."""
SECOND_READ_BYTES = 2**30
"""Stored bytes of input that one element of the second read reads by default."""


@dataclasses.dataclass(frozen=True)
class SelectionRequest:
    """Parameters of one selection.

    Attributes:
        output: Path of the run folder.
        policy: The rule and what it applies to.
        seed: Seed for tie-breaking and for the draw of a batch top-K.
        output_format: A value of `--output_format`; `same` follows the input.
        output_shard_bytes: Approximate size of an output file in bytes of kept text.
        reference: Run folder or rater checkpoint whose distribution of scores decides; None for
            that of the run itself.
        name: Name of the selection; by default it is made from the policy.
        sort_limit: Maximum number of documents whose keys one round gathers; it changes only cost.
        report_texts: Number of documents in each list of the report; 0 leaves the text of the
            corpus out of it.
        second_read_bytes: Stored bytes of input above which an output file is written in pieces;
            None for `SECOND_READ_BYTES`.
        tokenizer: Tokenizer of the output files; None if they have texts.
        tokenizer_path: Path of its `tokenizer.json`, or the name of the tokenizer of bytes.
        deduplication: How the near-duplicates that the ranking leaves out are found, unless that
            is done; None if it leaves out none.
        ranking: How documents are filtered, ranked and measured; None if the score of the run alone
            ranks them.
        rows_per_bucket: Number of rows of a joined table that a worker has in memory at a time,
            approximately; it changes only cost.
        launch: Id of the launch that does the work; "" for none.
        kept_leases: Paths of the launch's leases that the workers keep.
    """

    output: str
    policy: Policy
    seed: int
    output_format: str
    output_shard_bytes: int
    reference: str | None = None
    name: str = ""
    sort_limit: int = SORT_LIMIT
    report_texts: int = 0
    second_read_bytes: int | None = None
    tokenizer: TokenizerFields | None = None
    tokenizer_path: str = ""
    ranking: RankingOptions | None = None
    deduplication: DeduplicationRequest | None = None
    rows_per_bucket: int = ROWS_PER_BUCKET
    launch: str = ""
    kept_leases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            suffix = "-by-reference" if self.reference else ""
            suffix += "-ranked" if self.ranking else ""
            object.__setattr__(self, "name", self.policy.name + suffix)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    @property
    def ranked(self) -> RunFolder:
        """The folder with the score files that rank: of the run, or of the selection's ranking."""
        return self.folder if self.ranking is None else self.ranking_folder

    @property
    def ranking_folder(self) -> RankingFolder:
        """The folder of the selection's ranking."""
        return self.folder.ranking(self.name)

    @property
    def selection(self) -> SelectionFolder:
        """The selection's folder."""
        return self.folder.selection(self.name)

    @property
    def keeps_share_of_all(self) -> bool:
        """Whether it keeps the best share of all documents, by the score of the run alone."""
        policy = self.policy
        return (
            isinstance(policy.rule, KeepFraction)
            and policy.per is Scope.CORPUS
            and not policy.minimum
            and self.reference is None
            and self.ranking is None
        )

    def of_run(self, output: str) -> SelectionRequest:
        """Returns the same selection from another run folder."""
        deduplication = self.deduplication
        if deduplication is not None:
            deduplication = dataclasses.replace(deduplication, output=output)
        return dataclasses.replace(self, output=output, deduplication=deduplication)

    @property
    def options(self) -> SelectionOptions:
        """All options that change what is kept or written of the documents of one plan."""
        policy = self.policy
        return SelectionOptions(
            rule=RuleFields(policy.rule.kind, policy.rule.value),
            per=str(policy.per),
            source_weights={source: str(weight) for source, weight in policy.weights.items()},
            min_per_source=policy.minimum,
            reference=self.reference,
            seed=self.seed,
            output_format=self.output_format,
            output_shard_bytes=self.output_shard_bytes,
            second_read_bytes=self.second_read_bytes,
            tokenizer=self.tokenizer,
            ranking=self.ranking,
        )

    def options_over(self, plans: int) -> SelectionOptions:
        """Returns the options of a selection from the documents of the first plans.

        Args:
            plans: Number of plans.
        """
        return dataclasses.replace(
            self.options,
            plans=max(1, plans),
            mirrors_paths=self.output_format == "attributes",
        )


ENTRIES_PER_PARTITION = 2**18
"""Number of entries that a worker compares at a time, about 24 MB."""
SIGNATURES_PER_BLOCK = 2**13
"""Number of signatures that are in memory at a time while they are dealt out."""


@dataclasses.dataclass(frozen=True)
class DeduplicationRequest:
    """Parameters of one deduplication.

    Attributes:
        output: Path of the run folder.
        similarity: Jaccard similarity from which two documents are near-duplicates.
        seed: Seed that breaks ties between documents with the same score.
        name: Name of the deduplication; by default it is made from the similarity.
        max_compared: Number of documents of a bucket that all others are compared with.
        max_entries: Number of entries of a partition that are in memory at a time; it changes only
            cost, as do the next two.
        entries_per_partition: Number of entries of documents in buckets that are compared together.
        signatures_per_block: Number of signatures that are read at a time.
        launch: Id of the launch that does the work; "" for none.
        kept_leases: Paths of the launch's leases that the workers keep.
    """

    output: str
    similarity: float
    seed: int = 0
    name: str = ""
    max_compared: int = MAX_COMPARED
    max_entries: int = MAX_ENTRIES
    entries_per_partition: int = ENTRIES_PER_PARTITION
    signatures_per_block: int = SIGNATURES_PER_BLOCK
    launch: str = ""
    kept_leases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", default_name(self.similarity, self.seed))

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    @property
    def duplicates(self) -> DuplicatesFolder:
        """The folder of the deduplication."""
        return self.folder.duplicates(self.name)

    def options_over(self, plans: int) -> DuplicatesOptions:
        """Returns all options that decide what is found among the documents of the first plans.

        Args:
            plans: Number of plans.
        """
        return DuplicatesOptions(similarity=self.similarity, seed=self.seed, plans=max(1, plans))


@dataclasses.dataclass(frozen=True)
class Work:
    """What one graph does: all of it, so that any process can build the graph.

    Attributes:
        scoring: What to score; None to work on a scored corpus.
        selection: What to keep; None to select nothing.
        duplicates: Which near-duplicates to find; None for those that the selection leaves out, if
            it does.

    Raises:
        ValueError: None of them is given.
    """

    scoring: ScoringRequest | None = None
    selection: SelectionRequest | None = None
    duplicates: DeduplicationRequest | None = None

    def __post_init__(self) -> None:
        if self.duplicates is None and self.selection is not None:
            object.__setattr__(self, "duplicates", self.selection.deduplication)
        if self.scoring is None and self.selection is None and self.duplicates is None:
            raise ValueError(
                "there is nothing to do: neither scoring nor duplicates nor a selection is given"
            )

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        request = self.selection or self.duplicates or self.scoring
        assert request is not None
        return request.folder

    @property
    def goal(self) -> str:
        """The path of the file that the graph commits last."""
        if self.selection is not None:
            return self.selection.selection.success_path
        if self.duplicates is not None:
            return self.duplicates.duplicates.success_path
        return self.scoring_path

    @property
    def scoring_path(self) -> str:
        """The path of the counts that the scoring ends with; of a scored corpus without one."""
        if self.scoring is not None and self.scoring.plans:
            return self.folder.scoring_path_of(self.scoring.plans - 1)
        return last_scoring_path(self.folder)

    def leases(self) -> list[str]:
        """Returns the paths of the leases that a launch needs, one for each part of the work."""
        folders = []
        if self.scoring is not None and not commits.exists(self.scoring_path):
            folders.append(self.folder.scoring_lease_path)
        if self.duplicates is not None and not commits.exists(
            self.duplicates.duplicates.success_path
        ):
            folders.append(self.folder.duplicates_lease_path(self.duplicates.name))
        if self.selection is not None:
            folders.append(self.folder.selection_lease_path(self.selection.name))
        return folders

    def folders(self) -> list[str]:
        """Returns the folders that only the owner of these leases writes into."""
        folders = []
        if self.scoring is not None:
            folders += self.folder.scoring_folders
        if self.duplicates is not None:
            folders.append(self.duplicates.duplicates.path)
        if self.selection is not None:
            folders.append(self.selection.selection.path)
        return folders

    def of_launch(
        self, launch: str, slots: int = 0, *, elsewhere: bool = False, reads_ahead: bool = False
    ) -> Work:
        """Returns the same work for one launch.

        Args:
            launch: Id of the launch.
            slots: Number of worker processes; see `ScoringRequest`.
            elsewhere: Whether the work continues without the launching process, so that the workers
                keep its leases.
            reads_ahead: Whether there is a core for each worker to read on while it scores.
        """
        kept = tuple(self.leases()) if elsewhere else ()
        scoring, selection, duplicates = self.scoring, self.selection, self.duplicates
        if scoring is not None:
            scoring = dataclasses.replace(
                scoring, launch=launch, slots=slots, kept_leases=kept, reads_ahead=reads_ahead
            )
        if selection is not None:
            selection = dataclasses.replace(selection, launch=launch, kept_leases=kept)
        if duplicates is not None:
            duplicates = dataclasses.replace(duplicates, launch=launch, kept_leases=kept)
        return Work(scoring, selection, duplicates)
