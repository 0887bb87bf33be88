"""Local runs with worker processes, supervised: Beam's runner would wait for ever for a worker that died.

The command starts the graph in a process of its own, which starts the workers. When a worker dies,
all of them are ended and the graph is started again; what is committed is found and not done again.
A split that ends its worker again and again is named
(`datarater.pipelines.run_folder.split_marks`), and so is what was being scored when workers die
without anything being committed between.

Whoever is killed takes the others along: workers end when the graph's process is gone, and that
ends when the command is gone. So nothing works on in the dark while the same command is given
again.
"""

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
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult

from datarater.pipelines import errors
from datarater.pipelines.errors import CurationError, WorkerDiedError
from datarater.pipelines.graph.curation import Work
from datarater.pipelines.run_folder import commits, split_marks
from datarater.pipelines.run_folder.committed import committed_files
from datarater.pipelines.run_folder.lease import process_id
from datarater.pipelines.runners import choice, flink
from datarater.pipelines.runners.execution import LOCAL_RUNNER, Execution
from datarater.pipelines.runners.interrupts import Interrupts
from datarater.pipelines.runners.logs import quieten_beam
from datarater.rater_model import exit_codes

DEATHS_IN_VAIN = 3
"""How many workers may die, one after the other, without anything being committed between."""

_SECONDS_TO_END = 10.0
_MOST_SAID = 4000  # characters of a runner's or an error's own message
_LONGEST_REPORT = 2**16  # what a pipe holds; a character takes up to 12 bytes of it


@dataclasses.dataclass(frozen=True)
class _Order:
    """What the graph's process is told."""

    work: Work
    beam_args: tuple[str, ...]
    local_workers: int
    supervisor: dict[str, Any]


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


def run_here(work: Work, execution: Execution) -> PipelineResult:
    """Builds and runs a graph from this process, and waits for its end.

    Raises:
        CurationError: what stopped the run, if it is one of ours.
    """
    # Threads of Beam's local runner end only with this process.
    in_threads = execution.runner == LOCAL_RUNNER
    runner = _LocalRunner() if execution.supervised else None
    pipeline = beam.Pipeline(runner, options=execution.options)
    work.build(pipeline | "Start" >> beam.Impulse())
    result = None
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except Exception as error:
        interrupted = getattr(error, "interrupted", False)
        if interrupted and result is not None and not in_threads:
            with contextlib.suppress(Exception):  # the job may have ended by itself
                result.cancel()
            if execution.cluster is not None:
                flink.cancel(execution.cluster, execution.job_name)
        cause = errors.find_cause(error) or flink.why_failed(error, execution.cluster)
        if cause is None and not execution.local:
            said = " ".join(str(error).split()) or type(error).__name__
            cause = CurationError(
                f"the job failed: {said[-_MOST_SAID:]} (what is committed stays: run the same command to go on)"
            )
        if cause is None:
            raise
        cause.interrupted = interrupted and in_threads
        raise cause from error
    return result


def run_supervised(
    work: Work, execution: Execution, launch: str, say: Callable[[str], None]
) -> None:
    """Runs a graph in a process of its own, again when a worker dies.

    Args:
        work: what to do, in the name of the launch.
        execution: a local one.
        launch: the launch's id.
        say: prints a line.

    Raises:
        PoisonSplitError: a split ended one worker after the other.
        WorkerDiedError: workers died, and nothing was committed between.
        CurationError: whatever else stopped the run.
    """
    order = _Order(work, execution.beam_args, execution.workers, process_id())
    in_vain, committed = 0, committed_files(work.folder)
    while True:
        died, deaths = _run_once(order, launch)
        if died is None or commits.exists(work.goal):
            return
        for split, number in deaths.items():
            if number >= split_marks.MOST_DEATHS:
                raise split_marks.poison(split)
        before, committed = committed, committed_files(work.folder)
        in_vain = in_vain + 1 if committed == before else 1
        over = f", while scoring {' or '.join(sorted(deaths))}" if deaths else ""
        if in_vain >= DEATHS_IN_VAIN:
            raise WorkerDiedError(
                f"{died}{over}; {in_vain} workers died one after the other without getting anything done (137 is a "
                "kill, perhaps for want of memory). What is committed stays: run the same command to go on, with fewer "
                "--local_workers if memory is short"
            )
        say(f"a worker process died ({died}){over}; going on from what is committed")


def _run_once(order: _Order, launch: str) -> tuple[str | None, dict[str, int]]:
    """Runs the graph's process once; gives what died, or None, and how many workers each split has ended."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "datarater.pipelines.runners.local_workers", str(writing)],
                stdin=subprocess.PIPE,
                pass_fds=(writing,),
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
            )
        finally:
            os.close(writing)
        deaths: dict[str, int] = {}
        said = b""
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                pickle.dump(order, process.stdin)
            said = report.read1(
                _LONGEST_REPORT
            )  # at its end, or nothing when the process ends without a word
            if said:
                outcome = json.loads(said)
                if outcome["error"] == WorkerDiedError.__name__:
                    # The process waits to be ended, so that its workers are not ended with it:
                    # stopped, none of them begins another split between being looked at and being
                    # ended.
                    _signal_group(process.pid, signal.SIGSTOP)
                    deaths = split_marks.clear_bystanders(order.work.folder, launch)
            elif process.wait():
                message = f"the process that ran the graph ended with {process.returncode}"
                outcome = {"error": WorkerDiedError.__name__, "message": message}
                split_marks.clear_launch(order.work.folder, launch)
            else:
                outcome = {}
        finally:
            if process.poll() is None and not said:
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


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class _Report:
    """The one report of the graph's process: why it ends, if not because all is done.

    A worker's death is reported by the thread that sees it, while the graph still runs: once Beam
    unwinds, it ends the other workers, and their splits would look as if they had ended them.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self.kind = ""

    def send(self, kind: type[CurationError], message: str) -> None:
        """Reports an error; the first one counts."""
        with self._lock:
            if not self.kind:
                self.kind = kind.__name__
                os.write(
                    self._pipe,
                    json.dumps({"error": self.kind, "message": message[:_MOST_SAID]}).encode(),
                )

    def notice_deaths(self) -> None:
        """Reports a worker's death, of which Beam only lets the thread end that watched the worker."""

        def thread_ended(args: threading.ExceptHookArgs) -> None:
            if "Worker subprocess exited" in str(args.exc_value):
                self.send(WorkerDiedError, str(args.exc_value))
            else:
                previous(args)

        previous, threading.excepthook = threading.excepthook, thread_ended


def main() -> None:
    """The graph's process: the order on standard input, the report to the pipe named by the first argument."""
    order: _Order = pickle.load(sys.stdin.buffer)
    split_marks.die_with(order.supervisor)
    os.environ[split_marks.WATCHED_PROCESS] = json.dumps(process_id())
    quieten_beam()
    report, code = _Report(int(sys.argv[1])), exit_codes.DONE
    report.notice_deaths()
    try:
        with Interrupts():
            run_here(order.work, choice.choose(order.beam_args, order.local_workers))
    except CurationError as error:
        code = error.exit_code
        report.send(type(error), str(error))
    except Exception as error:
        if not report.kind:
            traceback.print_exc()
        message = f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}"
        code = exit_codes.FAILED
        report.send(CurationError, f"{message} (its traceback is above)")
    if report.kind == WorkerDiedError.__name__:
        time.sleep(_SECONDS_TO_END)  # the supervisor looks at the workers and ends us all
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # after a failure Beam's threads would wait for their workers


if __name__ == "__main__":
    main()
