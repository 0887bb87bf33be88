"""Completes single batches: claims files, curates them, publishes the record.

The journal (`datarater.pipelines.batch.journal`) is the state. A batch is a claim of files, then a
run folder that `running.run` fills, then a publication: the record of the batch, decided in
the journal and then committed as `PUBLISH/DATE/manifest.json`. Every step finds what was done
before, so the same command can run twice, late, in two launches at once, or again after a kill at
any moment:

- A published batch never changes.
- A batch that was begun is finished with its own files, in its own run folder.
- A batch that cannot be finished as it was begun (a claimed file changed before it was read, or the
  configuration has changed) releases its files, which the journal records, and starts over.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable

from datarater.pipelines.batch import frozen_reference, inputs, retention
from datarater.pipelines.batch import record as batch_record
from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.journal import (
    MANIFEST,
    SUCCESS,
    Claim,
    ClaimNotes,
    Journal,
    NamedSelection,
    Publication,
    Reference,
    Release,
    State,
    Terms,
)
from datarater.pipelines.batch.record import Record
from datarater.pipelines.batch.report import report_intake, report_record
from datarater.pipelines.commands import printing, running
from datarater.pipelines.errors import (
    CurationError,
    EmptyCorpusError,
    JobGoesOnError,
    LeaseHeldError,
    RunFolderMismatchError,
    UsageError,
)
from datarater.pipelines.graph.inputs import FileList
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest, Work
from datarater.pipelines.run_folder import commits, lease
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.identity import differences
from datarater.pipelines.run_folder.layout import json_lines, now, to_json
from datarater.pipelines.run_folder.manifest import read_manifest
from datarater.pipelines.run_folder.scored import read_scoring
from datarater.pipelines.runners.execution import Execution
from datarater.rater_model import exit_codes, interrupts
from datarater.rater_model.json_codec import to_plain

Curate = Callable[[Work, Execution], object]
"""Scores and selects, and waits for the end if it can."""

_MAX_NAMED = 5
_MAX_CHECKED = 32
"""Number of the newest publications to check: a kill leaves at most one without its manifest."""


class PastLimitError(CurationError):
    """A batch that is published, or held back, has passed a limit."""

    exit_code = exit_codes.PAST_LIMIT


class Batches:
    """The batches of one state folder, as one launch works on them.

    Args:
        config: The configuration.
        curate: Runs the work of a batch.
        adopt_reference: Whether another reference may replace the frozen one.
        accept_alarm: Date of the batch to publish despite an alarm that would hold it back; None
            for no date.

    Raises:
        CurationError: The configuration, the rater or the reference cannot be used.
    """

    def __init__(
        self,
        config: BatchConfig,
        curate: Curate = running.run,
        *,
        adopt_reference: bool = False,
        accept_alarm: str | None = None,
    ):
        for folder in (config.state, config.runs, config.publish):
            commits.check_file_system(folder)
        if not commits.exists(Journal(config.state).path(1)):
            commits.check_creates_once(config.state)
        self._config = config
        self._run = curate
        self._accept_alarm = accept_alarm
        self.journal = Journal(config.state)
        self._scoring, self._selection = config.requests()
        self._reference: Reference = frozen_reference.freeze(
            config, self.journal, self._scoring, self._selection, adopt=adopt_reference
        )
        self._terms = terms(self._scoring, self._selection, self._reference)

    def finish(self, date: datetime.date) -> Record:
        """Completes the batch of a date: claims its files, curates them, publishes.

        Args:
            date: Date of the batch.

        Returns:
            The record of the batch, which is published.

        Raises:
            PastLimitError: The batch is held back.
            LeaseHeldError: Another launch is working in it.
            CurationError: The batch failed; another call continues where it stopped.
        """
        day = date.isoformat()
        is_new = False

        # Each round takes one step from the current state of the journal.
        while True:
            interrupts.check()
            state = self.journal.read()
            number = state.claim_of(day)
            if number is None:
                self._check_publish_folder(day)
                is_new = self._claim(date)
            elif number in state.publications:
                return self._show(number)
            # A batch that this call has claimed is up to date, or a file that never stays the same
            # would make the loop endless.
            elif not is_new and (why := self._why_stale(date, state.claims[number])) is not None:
                printing.say(f"batch {day}: started over, because {why}")
                self.journal.decide(
                    lambda state, number=number, why=why: _release(  # type: ignore[misc]
                        state, number, why
                    )
                )
            else:
                self._publish(number, self._curate(date, number, state.claims[number]))

    # Claiming.

    def _claim(self, date: datetime.date) -> bool:
        """Claims the files of a date.

        Returns:
            False if another launch made a decision first, so that nothing was claimed.
        """
        self.journal.read()
        intake = inputs.find(self._config, self.journal, date)
        files = self.journal.keep("inputs", json_lines(intake.files))
        digest = self.journal.keep("notes", json_lines(intake.notes)) if intake.notes else None
        notes = ClaimNotes(**intake.counts(), sha256=digest)

        claim = Claim(
            date=date.isoformat(),
            files=len(intake.files),
            bytes=sum(file.size for file in intake.files),
            inputs=files,
            notes=notes,
            terms=self._terms,
            run=f"{self._config.runs}/{date.isoformat()}-{self.journal.state.number + 1:06d}",
            claimed=now(),
        )
        is_claimed = self.journal.append(claim)
        if is_claimed:
            report_intake(date, intake)
        return is_claimed

    def _check_publish_folder(self, day: str) -> None:
        """Refuses a date for which something is published that the journal does not know.

        Raises:
            RunFolderMismatchError: Another state folder has published for this date.
        """
        manifest = f"{self._config.publish}/{day}/{MANIFEST}"
        # Another launch with the same state folder may have published since the last read.
        if commits.exists(manifest) and self.journal.read().claim_of(day) is None:
            raise RunFolderMismatchError(
                f"{manifest} exists, but {self._config.state} has no batch of {day}: another state "
                "folder publishes here. Use another publish folder, or the state folder that "
                "belongs to it"
            )

    def _why_stale(self, date: datetime.date, claim: Claim) -> str | None:
        """Returns why a batch cannot be finished as it was begun; None if it can.

        Raises:
            LeaseHeldError: It cannot, but another launch is working in it.
        """
        work = self._work_of(claim)
        lines = differences(to_plain(self._terms), to_plain(claim.terms))
        if not lines and not commits.exists(work.goal):
            lines = inputs.changed_since(self.journal.inputs(claim))
        # Without {date} in the globs, new files belong to the batch that comes next.
        if not lines and not claim.files and self._config.is_dated:
            count = len(inputs.find(self._config, self.journal, date).files)
            lines = [f"it had no files, and {count:,} have arrived since"] if count else []
        if not lines:
            return None

        for folder in work.leases():
            term = lease.current(folder)
            if term is not None and term.is_held():
                raise LeaseHeldError(
                    f"{claim.run}: another launch is working here: {term.describe()}"
                )
        more = f"; and {len(lines) - _MAX_NAMED} more" if len(lines) > _MAX_NAMED else ""
        return "; ".join(lines[:_MAX_NAMED]) + more

    # Curating.

    def _work_of(self, claim: Claim) -> Work:
        """Returns the work of a batch, with its own files and run folder."""
        files = FileList(self.journal.kept("inputs", claim.inputs))
        return Work(
            dataclasses.replace(self._scoring, inputs=files, output=claim.run),
            self._selection.of_run(claim.run),
        )

    def _curate(self, date: datetime.date, number: int, claim: Claim) -> Record:
        """Scores and selects the files of a batch; returns the record.

        Raises:
            JobGoesOnError: The job continues without this command.
            CurationError: The run failed.
        """
        manifest = scoring = None

        # A batch without files has no run folder.
        if claim.files:
            work = self._work_of(claim)
            try:
                self._run_jobs(claim.date, work)
            except EmptyCorpusError as error:
                printing.say(f"batch {claim.date}: {error}")
            else:
                manifest = read_manifest(work.folder.selection(self._selection.name))
                scoring = read_scoring(work.folder)

        return batch_record.build(
            self.journal,
            number,
            claim,
            self._reference,
            self._config.limits,
            self._config.patterns(date),
            scoring=scoring,
            manifest=manifest,
        )

    def _run_jobs(self, day: str, work: Work) -> None:
        """Scores and selects in one job, or in one each if scoring has flags of its own.

        Raises:
            JobGoesOnError: A job continues without this command.
            CurationError: The run failed.
        """
        jobs = [work]
        if self._config.beam_score is not None:
            jobs = [Work(scoring=work.scoring), Work(selection=work.selection)]

        for job in jobs:
            execution = self._config.execution_of_scoring() if job.selection is None else None
            self._run(job, execution or self._config.execution())
            if not commits.exists(job.goal):
                raise JobGoesOnError(
                    f"batch {day}: the job continues without this command; to publish the batch, "
                    "run the same command again when the job has ended"
                )

    # Publishing.

    def _publish(self, number: int, record: Record) -> None:
        """Publishes a batch, unless an alarm holds it back.

        Raises:
            PastLimitError: It is held back.
            RunFolderMismatchError: It has released its files meanwhile.
        """
        day = record.date
        is_held = self._config.limits.on_alarm == "hold" and self._accept_alarm != day
        if record.alarms and is_held:
            report_record(record)
            held = f"batch {day} is held back: {batch_record.summarize_alarms(record)}"
            accept = self._config.batch_command(day, "--accept_alarm")
            if not record.inputs.files:
                later = "; if files arrive, the next run takes them" * self._config.is_dated
                raise PastLimitError(f"{held}. To publish it without files: {accept}{later}")
            raise PastLimitError(
                f"{held}. Look at {record.run}; then either publish it with {accept}, or "
                "correct the configuration, which starts it over"
            )

        digest = self.journal.keep("records", to_json(record))
        place = f"{self._config.publish}/{day}"

        def decision(state: State) -> Publication | None:
            if number in state.publications:
                return None
            if number not in state.claims:
                raise RunFolderMismatchError(
                    f"batch {day}: another launch has started it over with other files or options; "
                    "run the same command again"
                )
            return Publication(number, digest, place)

        self.journal.decide(decision)

    def _show(self, number: int) -> Record:
        """Makes sure that readers find a published batch; returns its record."""
        publication = self.journal.state.publications[number]
        data = self.journal.read_kept("records", publication.record)
        self.journal.read()  # another launch may have let it expire since
        if not self._is_shown(number):
            path = f"{publication.place}/{MANIFEST}"
            if not commits.commit_if_absent(path, data) and commits.read_bytes(path) != data:
                raise RunFolderMismatchError(
                    f"{path} is not what this batch published; another state folder wrote it"
                )
            commits.commit_if_absent(f"{publication.place}/{SUCCESS}", b"")
        return batch_record.read_record(self.journal, publication)

    def _is_shown(self, number: int) -> bool:
        """Whether readers find a published batch, or must no longer find it."""
        state = self.journal.state
        return number in state.all_expired or commits.exists(
            f"{state.publications[number].place}/{SUCCESS}"
        )

    def show_newest(self) -> list[Record]:
        """Completes the newest publications that a killed launch left without their manifest.

        Returns:
            Their records.
        """
        newest = list(self.journal.read().publications)[-_MAX_CHECKED:]
        is_shown = at_once(self._is_shown, newest)
        pairs = list(zip(newest, is_shown, strict=True))
        return [self._show(number) for number, shown in pairs if not shown]

    def check_retention(self, date: datetime.date) -> None:
        """Refuses to make a batch that the retention rule would remove at once.

        Raises:
            UsageError: The date is too old; the message gives the newest one.
        """
        days, state = self._config.retention.published_days, self.journal.read()
        dates = [
            datetime.date.fromisoformat(state.claims[number].date) for number in state.publications
        ]
        if days is None or date in dates or not dates or (max(dates) - date).days <= days:
            return
        raise UsageError(
            f"--as_of {date}: a batch is published for {max(dates)}, and retention.published_days: "
            f"{days} would remove this one at once; raise that number, or skip this date"
        )

    def expire(self) -> None:
        """Removes the files that the retention rule no longer keeps."""
        retention.expire(self._config, self.journal, printing.say)


def _release(state: State, number: int, why: str) -> Release | None:
    is_open = number in state.claims and number not in state.publications
    return Release(number, why) if is_open else None


def terms(scoring: ScoringRequest, selection: SelectionRequest, reference: Reference) -> Terms:
    """Returns everything that decides which documents of a batch are kept.

    Args:
        scoring: Scoring options of the batches.
        selection: Selection options of the batches.
        reference: The frozen reference.
    """
    named = NamedSelection(**vars(selection.options), name=selection.name)
    return Terms(scoring.options, named, reference.digest)
