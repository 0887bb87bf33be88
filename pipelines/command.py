"""What the commands share: running a graph, exit codes, what is printed at the end."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.runners.runner import PipelineResult

from pipelines import commits, errors, selecting
from pipelines.errors import CurationError, RunFolderError, StoppedError, WorkerDiedError
from pipelines.ledger import RunFolder
from pipelines.progress import Progress, quieten_beam
from pipelines.runners import Layout
from pipelines.selecting import SelectionRequest
from rater_model.files import local_path


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def check_writable(folder: RunFolder) -> None:
    """Makes a local run folder, and refuses one that cannot be written.

    Raises:
        RunFolderError: saying why.
    """
    local = local_path(folder.path)
    if local is None:
        return
    try:
        os.makedirs(local, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"--output: {folder.path} cannot be made: {error}") from error
    if not os.access(local, os.W_OK | os.X_OK):
        raise RunFolderError(f"--output: {folder.path} cannot be written")


@contextlib.contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """Ends a run on SIGINT and SIGTERM, and on the death of a local worker process.

    Both raise in the main thread. Beam's local runner would wait for ever for a worker that died: it only lets
    the thread that watched the worker end with an error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deaths: list[str] = []

    def stop(number: int, _: Any) -> None:
        if deaths:
            raise WorkerDiedError(
                f"{deaths[0]} (137: killed, perhaps for want of memory); nothing committed is lost: run the same "
                "command to go on, with fewer --local_workers if memory is short"
            )
        raise StoppedError(
            f"stopped by {signal.Signals(number).name}; nothing committed is lost: run the same command to go on"
        )

    def thread_ended(args: threading.ExceptHookArgs) -> None:
        message = str(args.exc_value)
        if "Worker subprocess exited" not in message:
            previous_hook(args)
        elif not deaths:
            deaths.append(message)
            os.kill(os.getpid(), signal.SIGTERM)

    previous_hook, threading.excepthook = threading.excepthook, thread_ended
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        threading.excepthook = previous_hook
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_graph(
    build: Callable[[beam.PCollection], Any], layout: Layout, folder: RunFolder, goal: str
) -> PipelineResult | None:
    """Builds and runs a graph, and waits for its end.

    Args:
        build: adds the steps to a collection of one element.
        layout: the runner and its options.
        folder: the run folder, watched for the progress line of a local run.
        goal: the file that the graph commits last.

    Returns:
        Beam's result; None where a worker died after all was committed.

    Raises:
        CurationError: what stopped the run, if it is one of ours.
    """
    say(f"layout: {layout.describe()}")
    pipeline = beam.Pipeline(options=layout.options)
    build(pipeline | "Start" >> beam.Impulse())
    watch: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if layout.local:
        quieten_beam()
        watch = Progress(folder)
    with _stopping_on_signals(), watch:
        try:
            result = pipeline.run()
            result.wait_until_finish()
        except Exception as error:
            if isinstance(error, WorkerDiedError) and commits.exists(goal):
                return None
            cause = errors.find_cause(error)
            if cause is None:
                raise
            raise cause from error
    return result


def run_command(command: str, run: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None) -> int:
    """Runs a command and says by its exit code how it ended."""
    try:
        run(argv)
    except CurationError as error:
        print(f"{command}: {error}", file=sys.stderr, flush=True)
        if isinstance(error, StoppedError | WorkerDiedError):
            # Threads and workers of the local runner would go on with their splits; what matters is committed.
            sys.stdout.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except OSError as error:
        print(f"{command}: {error}", file=sys.stderr, flush=True)
        return errors.FAILED
    return errors.DONE


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}"


def print_scoring(folder: RunFolder) -> None:
    """Prints the counts of a scored corpus."""
    scoring = selecting.read_scoring(folder)
    counts = scoring["counts"]
    rejected = sum(counts["rejected"].values())
    say(
        f"scored {_count(counts['scored'], 'documents')} ({_count(counts['tokens'], 'tokens')}) of "
        f"{_count(counts['read'], 'records')} in {_count(scoring['splits'], 'splits')}; "
        f"rejected {rejected:,}"
    )
    _print_reasons(counts["rejected"], folder)


def _print_reasons(reasons: dict[str, int], folder: RunFolder) -> None:
    for reason, number in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        say(f"  {reason:<20} {number:>12,}")
    if reasons:
        say(f"  each with its file, position and reason in {folder.path}/rejected/")


def read_manifest(request: SelectionRequest) -> dict[str, Any] | None:
    """The manifest of a finished selection, None if it is not finished."""
    if not commits.exists(request.selection.success_path):
        return None
    manifest: dict[str, Any] = orjson.loads(commits.read_bytes(request.selection.manifest_path))
    return manifest


def print_selection(request: SelectionRequest) -> None:
    """Prints the counts of a finished selection, and where its files are."""
    manifest = read_manifest(request)
    if manifest is None:
        say("submitted; the job goes on without this command")
        return
    counts = manifest["counts"]
    say(f"read      {counts['read']:>12,}")
    say(f"kept      {counts['kept']:>12,}  ({counts['kept_tokens']:,} tokens)")
    say(f"dropped   {counts['dropped']:>12,}")
    say(f"rejected  {counts['rejected']:>12,}")
    _print_reasons(counts["rejected_by_reason"], request.folder)
    say(f"kept documents: {len(manifest['files'])} files in {request.selection.path}/kept/")
    say(f"manifest:       {request.selection.manifest_path}")
    say(f"another rule, without scoring again: datarater-select --output {request.output} --keep_fraction F")
