"""Keeps the processes of the cluster running: restarts every process that ends, until a signal.

    python -m deploy.flink.supervisor FOLDER [PROCESS]

`commands.json` in the folder lists what to run, `processes.json` what is running. Every process
has its own log. The supervisor ends together with PROCESS, given as JSON
(`datarater.pipelines.run_folder.lease.process_id`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from datarater.pipelines.run_folder import split_marks
from datarater.pipelines.run_folder.lease import Process, is_gone, process_id
from datarater.rater_model.atomic_files import write_json
from datarater.rater_model.json_codec import decode, to_plain

COMMANDS, PROCESSES, LOGS = "commands.json", "processes.json", "logs"
SUPERVISOR = "supervisor"
_LOOK_SECONDS = 0.25
_PAUSE_SECONDS = 1.0
_SECONDS_TO_END = 5.0


@dataclasses.dataclass(frozen=True)
class Command:
    """A process to keep running.

    Attributes:
        name: Name of the process and of its log.
        argv: Program and its arguments.
        environment: Environment variables to add to the supervisor's.
        directory: Working directory, created if missing; None for the supervisor's.
    """

    name: str
    argv: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    directory: str | None = None


class Supervisor:
    """Runs the commands of a cluster's folder and restarts those that end."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._commands = [
            Command(**fields) for fields in json.loads((folder / COMMANDS).read_bytes())
        ]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._due = {command.name: 0.0 for command in self._commands}

    def look(self) -> None:
        """Starts every command that is not running."""
        changed = False
        for command in self._commands:
            process = self._running.get(command.name)
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                print(
                    f"{command.name}, process {process.pid}, ended with {process.returncode}",
                    flush=True,
                )
                del self._running[command.name]
                self._due[command.name] = time.monotonic() + _PAUSE_SECONDS

            if time.monotonic() >= self._due[command.name]:
                self._running[command.name] = self._start(command)
                changed = True
        if changed:
            self._write()

    def _start(self, command: Command) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            split_marks.WATCHED_PROCESS: json.dumps(to_plain(process_id())),
            **command.environment,
        }
        if command.directory is not None:
            os.makedirs(command.directory, exist_ok=True)

        with open(self._folder / LOGS / f"{command.name}.log", "ab") as log:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=command.directory,
            )
        print(f"{command.name} is process {process.pid}", flush=True)
        return process

    def _write(self) -> None:
        processes = {name: process_id(process.pid) for name, process in self._running.items()}
        write_json(self._folder / PROCESSES, to_plain({SUPERVISOR: process_id(), **processes}))

    def end(self) -> None:
        """Stops all processes: SIGTERM first, SIGKILL after a few seconds."""
        for process in self._running.values():
            process.terminate()
        end = time.monotonic() + _SECONDS_TO_END
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            process.kill()
            process.wait()


def running(folder: Path) -> Iterator[tuple[str, int]]:
    """Yields the names and ids of the running processes of a cluster, the supervisor first."""
    try:
        processes = decode(dict[str, Process], (folder / PROCESSES).read_bytes())
    except FileNotFoundError:
        return
    for name, process in processes.items():
        if not is_gone(process):
            yield name, process.pid


def main() -> None:
    """Supervises until SIGTERM or SIGINT, or until the watched process is gone."""
    supervisor = Supervisor(Path(sys.argv[1]))

    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)  # an error would end in whatever runs just now

    # A second signal must not interrupt the shutdown.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    watched = decode(Process, sys.argv[2].encode()) if len(sys.argv) > 2 else process_id()
    while not signals and not is_gone(watched):
        supervisor.look()
        time.sleep(_LOOK_SECONDS)
    supervisor.end()


if __name__ == "__main__":
    main()
