"""Supervises local worker processes: Beam's runner would wait forever for a worker that died.

The command starts the graph in a process of its own, which starts the workers. When a worker dies,
all of them are ended and the graph is started again; committed work is not repeated. A split that
repeatedly ends its worker is reported (`datarater.pipelines.run_folder.split_marks`), and so are
the splits in progress when workers die without any commit in between.

No process outlives its parent: workers end when the graph's process is gone, and that one ends when
the command is gone. So nothing is still running unseen when the same command is started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult

from datarater.pipelines import errors
from datarater.pipelines.errors import CurationError, WorkerDiedError
from datarater.pipelines.graph.curation import Curation
from datarater.pipelines.graph.requests import Work
from datarater.pipelines.run_folder import commits, split_marks
from datarater.pipelines.run_folder.committed import committed_files
from datarater.pipelines.run_folder.lease import Process, process_id
from datarater.pipelines.runners import choice, flink
from datarater.pipelines.runners.execution import LOCAL_RUNNER, Execution
from datarater.pipelines.runners.interrupts import Interrupts
from datarater.pipelines.runners.logs import quieten_beam
from datarater.rater_model import exit_codes
from datarater.rater_model.documents.store_errors import one_line
from datarater.rater_model.json_codec import to_plain

MAX_DEATHS_WITHOUT_COMMIT = 3
"""Number of deaths without a commit in between that ends a run."""

_SECONDS_TO_END = 10.0
_MAX_MESSAGE = 4000  # characters of a message of a runner or an error
_MAX_REPORT = 2**16  # capacity of a pipe in bytes; a character takes up to 12 of them


@dataclasses.dataclass(frozen=True)
class _Order:
    """The work of the graph's process."""

    work: Work
    beam_args: tuple[str, ...]
    local_workers: int
    supervisor: Process


class _LocalRunner(FnApiRunner):
    """Beam's local runner, with worker processes that run `datarater.pipelines.runners.worker`."""

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> PipelineResult:
        command = f"{shlex.quote(sys.executable)} -m datarater.pipelines.runners.worker"
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.payload = command.encode()
        return super().run_via_runner_api(pipeline_proto, options)


def run_here(work: Work, execution: Execution, interrupts: Interrupts) -> PipelineResult:
    """Builds and runs a graph from this process, and waits for its end.

    Args:
        work: The work.
        execution: The runner and its options.
        interrupts: What can interrupt the wait.

    Raises:
        CurationError: An error of this package stopped the run, or a job failed.
    """
    # Threads of Beam's local runner end only with this process.
    in_threads = execution.runner == LOCAL_RUNNER
    runner = _LocalRunner() if execution.supervised else None
    pipeline = beam.Pipeline(runner, options=execution.options)
    _ = pipeline | "Start" >> beam.Impulse() | "Curate" >> Curation(work)

    result = None
    try:
        if in_threads:
            return interrupts.wait_for(lambda: _run_to_end(pipeline))
        # Beam starts a job server in the main thread only.
        result = pipeline.run()
        interrupts.wait_for(result.wait_until_finish)
    except Exception as error:
        # A job elsewhere would continue without this process.
        interrupted = getattr(error, "interrupted", False)
        if interrupted and result is not None and not in_threads:
            with contextlib.suppress(Exception):  # the job may have ended
                result.cancel()
            if execution.cluster is not None:
                flink.cancel(execution.cluster, execution.job_name)

        # The user sees one line instead of the runner's traceback, wherever the cause is known.
        cause = errors.find_cause(error) or flink.why_failed(error, execution.cluster)
        if cause is None and not execution.local:
            message = one_line(error, None)
            cause = CurationError(
                f"the job failed: {message[-_MAX_MESSAGE:]} (committed work is kept: run the same "
                "command to continue)"
            )
        if cause is None:
            raise
        cause.interrupted = interrupted and in_threads
        raise cause from error
    return result


def _run_to_end(pipeline: beam.Pipeline) -> PipelineResult:
    result = pipeline.run()
    result.wait_until_finish()
    return result


def run_supervised(
    work: Work,
    execution: Execution,
    launch: str,
    say: Callable[[str], None],
    interrupts: Interrupts,
) -> None:
    """Runs a graph in a process of its own, and again when a worker dies.

    Args:
        work: Work of the launch.
        execution: Local execution.
        launch: Id of the launch.
        say: Prints a line.
        interrupts: What can interrupt the run.

    Raises:
        PoisonSplitError: A split ended several workers.
        WorkerDiedError: Workers died without any commit in between.
        CurationError: Another error stopped the run.
    """
    order = _Order(work, execution.beam_args, execution.workers, process_id())
    deaths_without_commit, committed = 0, committed_files(work.folder)
    while True:
        died, deaths = _run_once(order, launch, interrupts)
        if died is None or commits.exists(work.goal):
            return

        # One split may be the cause of all deaths.
        rejects = work.scoring is not None and work.scoring.rejects_bad_splits
        for split, number in deaths.items():
            if number >= split_marks.MAX_DEATHS_IN_SPLIT and not rejects:
                raise split_marks.poison(split)

        # Otherwise the run continues as long as work is committed between the deaths. A split that
        # will be rejected in the end explains its deaths.
        before, committed = committed, committed_files(work.folder)
        if rejects and deaths:
            deaths_without_commit = 0
        else:
            deaths_without_commit = deaths_without_commit + 1 if committed == before else 1
        over = f", while scoring {' or '.join(sorted(deaths))}" if deaths else ""
        if deaths_without_commit >= MAX_DEATHS_WITHOUT_COMMIT:
            raise WorkerDiedError(
                f"{died}{over}; {deaths_without_commit} workers died in a row without committing "
                "anything (137 means killed, perhaps because memory ran out). Committed work is "
                "kept: run the same command to continue, with fewer --local_workers if memory is "
                "short"
            )
        say(f"a worker process died ({died}){over}; continuing from the committed work")


def _run_once(
    order: _Order, launch: str, interrupts: Interrupts
) -> tuple[str | None, dict[str, int]]:
    """Runs the graph's process once.

    Returns:
        A message about what died, or None, and the number of workers that each split has ended.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        try:
            process = _start_process(writing)
        finally:
            os.close(writing)

        deaths: dict[str, int] = {}
        report = b""
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                pickle.dump(order, process.stdin)

            # This waits for a report, or for the end of a process that sends none.
            report = interrupts.wait_for(lambda: pipe.read1(_MAX_REPORT))
            if report:
                outcome = json.loads(report)
                if outcome["error"] == WorkerDiedError.__name__:
                    # The process waits to be ended, so that its workers do not end before it. While
                    # stopped, none of them starts another split between the look at its mark and
                    # its end.
                    _signal_group(process.pid, signal.SIGSTOP)
                    deaths = split_marks.clear_bystanders(order.work.folder, launch)
            elif interrupts.wait_for(process.wait):
                message = f"the process that ran the graph ended with {process.returncode}"
                outcome = {"error": WorkerDiedError.__name__, "message": message}
                split_marks.clear_launch(order.work.folder, launch)
            else:
                outcome = {}
        finally:
            if process.poll() is None and not report:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_SECONDS_TO_END)
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()

    if not outcome:
        return None, {}
    if outcome["error"] == WorkerDiedError.__name__:
        return outcome["message"], deaths
    raise errors.named(outcome["error"], outcome["message"])


def _start_process(pipe: int) -> subprocess.Popen[bytes]:
    """Starts the graph's process in a session of its own, with the same import path."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "datarater.pipelines.runners.graph_process", str(pipe)],
        stdin=subprocess.PIPE,
        pass_fds=(pipe,),
        start_new_session=True,
        # Workers inherit this. By default glibc's malloc has up to eight arenas for each core, in
        # which the threads of a worker hold 25 MB of free memory.
        env={"MALLOC_ARENA_MAX": "2", **os.environ, "PYTHONPATH": path},
    )


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class _Report:
    """The single report of the graph's process: why it ends before all is done.

    A worker's death is reported by the thread that notices it, while the graph still runs. When
    Beam unwinds, it ends the other workers, and their splits would seem to be the cause.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self.kind = ""

    def send(self, kind: type[CurationError], message: str) -> None:
        """Reports an error; only the first counts."""
        with self._lock:
            if not self.kind:
                self.kind = kind.__name__
                os.write(
                    self._pipe,
                    json.dumps({"error": self.kind, "message": message[:_MAX_MESSAGE]}).encode(),
                )

    def notice_deaths(self) -> None:
        """Reports workers' deaths; Beam itself only ends the thread that watched the worker."""

        def thread_ended(args: threading.ExceptHookArgs) -> None:
            if "Worker subprocess exited" in str(args.exc_value):
                self.send(WorkerDiedError, str(args.exc_value))
            else:
                previous(args)

        previous, threading.excepthook = threading.excepthook, thread_ended


def run_ordered(pipe: int) -> None:
    """Runs the graph whose order is on standard input, and ends the process.

    Args:
        pipe: File descriptor of the pipe for the report.
    """
    order: _Order = pickle.load(sys.stdin.buffer)
    split_marks.die_with(order.supervisor)
    os.environ[split_marks.WATCHED_PROCESS] = json.dumps(to_plain(process_id()))
    quieten_beam()

    report, code = _Report(pipe), exit_codes.DONE
    report.notice_deaths()
    try:
        with Interrupts() as interrupts:
            workers = order.local_workers
            execution = choice.choose(order.beam_args, workers, max_workers=workers)
            run_here(order.work, execution, interrupts)
    except CurationError as error:
        code = error.exit_code
        report.send(type(error), str(error))
    except Exception as error:
        if not report.kind:
            traceback.print_exc()
        message = f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}"
        code = exit_codes.FAILED
        report.send(CurationError, f"{message} (its traceback is above)")

    # The supervisor looks at the workers and then ends all processes.
    if report.kind == WorkerDiedError.__name__:
        time.sleep(_SECONDS_TO_END)
    # After a failure Beam's threads would wait for their workers.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
