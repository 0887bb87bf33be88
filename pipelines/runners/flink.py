"""Inspects a Flink cluster: its slots, what a job lacks before it starts, and why a job fails.

The job manager's REST service, which every Flink cluster has, answers most of it. Apart from that
service this module connects only to Beam's job server and to worker pools of this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import re
import shutil
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

from datarater.pipelines import errors
from datarater.pipelines.errors import CurationError
from datarater.pipelines.run_folder.background import Background
from datarater.rater_model.counted import counted

DEFAULT_WORKER_POOL = "localhost:50000"
"""Address of a task manager's worker pool unless given: beside the task manager, as in one pod."""

_REST_SECONDS = 10.0
_WORKER_SECONDS = 60.0
_MAX_CACHE_MILLIS = 10_000
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_ENDED = ("FAILED", "FINISHED", "CANCELED")
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|\[?::1\]?")


class FlinkError(CurationError):
    """A cluster, a job server or a worker pool cannot run a job, or a job failed."""


@dataclasses.dataclass(frozen=True)
class FlinkCluster:
    """A Flink cluster, as its job manager describes it.

    Attributes:
        master: URL of its REST service.
        version: Version of Flink, as in 1.19.0.
        task_managers: Number of task managers.
        slots: Number of slots of all task managers together.
        max_slots: Number of slots of the task manager that has the most.
        restarts: Whether Flink restarts a job after a task manager or worker is lost.
        restart_seconds: Delay before a restart.
        is_here: Whether the task managers are processes of this machine.
    """

    master: str
    version: str
    task_managers: int
    slots: int
    max_slots: int
    restarts: bool = False
    restart_seconds: float = 0.0
    is_here: bool = False

    @property
    def environment_cache_millis(self) -> int:
        """How long workers are kept from one step to the next.

        It is less than the delay before a restart, so that a restarted job never gets a worker that
        has died.
        """
        if not self.restarts:
            return _MAX_CACHE_MILLIS
        return min(_MAX_CACHE_MILLIS, int(self.restart_seconds * 1000 / 2))

    def describe(self) -> str:
        """Describes the cluster in a few words."""
        restarts = (
            ""
            if self.restarts
            else "; it has no restart strategy: a lost task manager or worker fails the job"
        )
        managers = counted(self.task_managers, "task manager")
        slots = counted(self.slots, "slot")
        return f"Flink {self.version} at {self.master}, {managers}, {slots}{restarts}"


def _url(master: str) -> str:
    master = master.strip().rstrip("/")
    return master if re.match("https?://", master) else f"http://{master}"


def _get(master: str, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"{_url(master)}{path}", timeout=_REST_SECONDS) as answer:
            return json.load(answer)
    except http.client.HTTPException as error:  # something other than HTTP listens there
        raise OSError(f"no HTTP answer: {error!r}") from error


def look(master: str) -> FlinkCluster:
    """Asks a job manager about its cluster.

    Args:
        master: Host and port of its REST service, or a URL.

    Raises:
        FlinkError: It does not answer, or no task manager has joined it and offered slots.
    """
    try:
        overview = _get(master, "/overview")
        managers = _get(master, "/taskmanagers")["taskmanagers"]
        settings = {
            entry["key"]: str(entry["value"]) for entry in _get(master, "/jobmanager/config")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlinkError(
            f"--flink_master: no Flink job manager answers at {_url(master)} "
            f"({getattr(error, 'reason', error)}); give the address of its REST service, by "
            "default on port 8081. `make flink` starts a cluster on this machine"
        ) from error

    # A task manager joins first and offers its slots afterward.
    if not managers:
        raise FlinkError(
            f"--flink_master: the job manager at {_url(master)} has no task manager yet; start some"
        )
    if overview["slots-total"] < 1:
        raise FlinkError(
            f"--flink_master: the task managers of {_url(master)} have offered no slots yet; try "
            "again in a moment"
        )

    # Older versions of Flink call the type of the strategy `restart-strategy`.
    strategy = settings.get("restart-strategy.type", settings.get("restart-strategy", "none"))
    delay = settings.get(f"restart-strategy.{strategy}.delay", "1 s")
    return FlinkCluster(
        _url(master),
        overview["flink-version"],
        len(managers),
        overview["slots-total"],
        max(manager["slotsNumber"] for manager in managers),
        strategy.lower() not in ("none", "off", "disable"),
        _seconds(delay),
        is_local(master) and all(_runs_here(manager) for manager in managers),
    )


def _runs_here(manager: Mapping[str, Any]) -> bool:
    """Returns whether a task manager's address, as the job manager knows it, is of this machine."""
    match = re.search(r"@([^:/]+)[:/]", str(manager.get("path", "")))
    return match is not None and (
        match[1] == socket.gethostname() or _LOOPBACK.fullmatch(match[1]) is not None
    )


def _seconds(duration: str) -> float:
    """Parses a duration of Flink's configuration, as in `10 s` or `500ms`; 0 if it is malformed."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", duration.strip().lower())
    if match is None:
        return 0.0
    return int(match[1]) * _UNITS.get(match[2] or "ms", 0.0)


def check_parallelism(cluster: FlinkCluster, parallelism: int) -> None:
    """Refuses more workers than there are slots: the job would wait for them forever.

    Raises:
        FlinkError: There are fewer slots; the message names both numbers.
    """
    if parallelism > cluster.slots:
        raise FlinkError(
            f"--parallelism {parallelism}: {cluster.describe()}, which is fewer; add task managers "
            f"or slots, or use --parallelism {cluster.slots}"
        )


def check_job_endpoint(flag: str, endpoint: str) -> None:
    """Refuses a job server that does not listen.

    Args:
        flag: Name of the flag, for the message.
        endpoint: Host and port.

    Raises:
        FlinkError: Nothing listens there; the message names both.
    """
    if reason := _refusal(endpoint):
        raise FlinkError(
            f"{flag}: Beam's job server does not listen at {endpoint} ({reason}); start it for "
            "your cluster, or leave the flag out and FlinkRunner starts its own"
        )


def check_java(launcher: str) -> None:
    """Refuses a machine without Java, with which FlinkRunner starts Beam's job server.

    Raises:
        FlinkError: There is no Java; the message says what to do.
    """
    if shutil.which(launcher) is None:
        raise FlinkError(
            f"FlinkRunner starts Beam's job server with {launcher}, which is not installed; "
            "install Java, or give --job_endpoint=HOST:PORT of a running job server"
        )


def _refusal(address: str) -> str:
    """Returns why a connection to an address fails; "" if it succeeds."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REST_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return str(error)


class _Greeter(beam_fn_api_pb2_grpc.BeamFnControlServicer):
    """The service that a started worker reports to; it ends the worker at once."""

    def __init__(self) -> None:
        self.reported = threading.Event()

    def Control(  # noqa: N802 - the name is Beam's
        self, responses: Any, context: Any
    ) -> Iterator[Any]:
        self.reported.set()
        yield from ()


def check_worker_pool(address: str, seconds: float = _WORKER_SECONDS) -> None:
    """Has a worker pool of this machine start a worker, and waits until it reports.

    A pool whose Python lacks Beam starts workers that end at once, and a job would wait for them
    forever.

    Args:
        address: Host and port. A pool of another machine is not checked: it may be out of reach
            from here.
        seconds: Time that the worker may take.

    Raises:
        FlinkError: Nothing listens there, or no worker reports.
    """
    if not is_local(address):
        return

    if reason := _refusal(address):
        port = address.rpartition(":")[2]
        raise FlinkError(
            f"--environment_config: no worker pool listens at {address} ({reason}); start one "
            "beside each task manager: python -m apache_beam.runners.worker.worker_pool_main "
            f"--service_port={port}"
        )

    # The pool starts a worker for this service in place of a runner's.
    greeter = _Greeter()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(greeter, server)
    here = endpoints_pb2.ApiServiceDescriptor(
        url=f"localhost:{server.add_insecure_port('localhost:0')}"
    )
    name = f"check-{uuid.uuid4().hex[:8]}"
    request = beam_fn_api_pb2.StartWorkerRequest(
        worker_id=name,
        control_endpoint=here,
        logging_endpoint=here,
        artifact_endpoint=here,
        provision_endpoint=here,
    )

    server.start()
    try:
        with grpc.insecure_channel(address) as channel:
            pool = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            reason = pool.StartWorker(request, timeout=_REST_SECONDS).error
            has_reported = not reason and greeter.reported.wait(seconds)
            pool.StopWorker(
                beam_fn_api_pb2.StopWorkerRequest(worker_id=name), timeout=2 * _REST_SECONDS
            )
    except grpc.RpcError as error:
        raise FlinkError(
            f"--environment_config: the process at {address} is not a worker pool "
            f"({_details(error)})"
        ) from error
    finally:
        server.stop(None)

    if not has_reported:
        raise FlinkError(
            f"--environment_config: the worker pool at {address} started no worker that reports"
            f"{f': {reason}' if reason else f' within {seconds:.0f} s'}; does the `python` on "
            "its PATH have apache-beam and datarater? See its log"
        )


def is_local(address: str) -> bool:
    """Returns whether the host of an address or a URL is a loopback name or address."""
    host = address.partition("://")[2] or address
    return _LOOPBACK.fullmatch(host.partition("/")[0].rpartition(":")[0]) is not None


def _details(error: BaseException) -> str:
    return " ".join(str(getattr(error, "details", lambda: error)()).split())


def why_failed(error: BaseException, cluster: FlinkCluster | None) -> FlinkError | None:
    """Explains why a job or its job server failed, unless an error of this package is the cause.

    Args:
        error: Error that Beam raised.
        cluster: Cluster of the job, if known.

    Returns:
        An error with a message of one line; None if no job failed.
    """
    more = f"; {cluster.master} shows more" if cluster is not None else ""
    if isinstance(error, grpc.RpcError | grpc.FutureTimeoutError):
        return FlinkError(
            f"the job server was lost ({_details(error)}): the job may continue or may be "
            f"gone{more}. Committed work is kept: run the same command to continue"
        )

    text = str(error)
    if isinstance(error, RuntimeError) and "job server jar" in text:
        return FlinkError(
            f"{' '.join(text.split())} Or give --flink_job_server_jar=PATH, or "
            "--job_endpoint=HOST:PORT of a running job server"
        )
    if not isinstance(error, RuntimeError) or "failed in state" not in text:
        return None

    absent = re.search(r"No module named 'datarater[^']*'", text)
    if absent is not None:
        return FlinkError(
            f"the workers' Python lacks datarater ({absent[0]}); install it there{more}"
        )
    lines = text.split(": ", 1)[-1].strip().splitlines()
    return FlinkError(
        f"the job failed: {lines[0] if lines else text}{more}. Committed work is kept: run the "
        "same command to continue"
    )


def _find(cluster: FlinkCluster, job: str) -> str | None:
    """Returns the id of the newest live job of a name; None before it has reached the cluster."""
    jobs = _get(cluster.master, "/jobs/overview")["jobs"]
    live = [each for each in jobs if each["name"] == job and each["state"] not in _ENDED]
    return max(live, key=lambda each: each["start-time"])["jid"] if live else None


def cancel(cluster: FlinkCluster, job: str) -> None:
    """Cancels a job that may still run.

    Beam's job server would only forget it, and Flink would restart it repeatedly.

    Args:
        cluster: Cluster of the job.
        job: Name of the job.
    """
    # A cluster that does not answer runs nothing.
    with contextlib.suppress(OSError, ValueError, KeyError, http.client.HTTPException):
        job_id = _find(cluster, job)
        if job_id is not None:
            request = urllib.request.Request(
                f"{cluster.master}/jobs/{job_id}?mode=cancel", method="PATCH"
            )
            urllib.request.urlopen(request, timeout=_REST_SECONDS).close()


class Watch(Background):
    """Watches a job, and ends it for an error of this package, which a restart would only repeat.

    Args:
        cluster: Cluster of the job.
        job: Name of the job.
        interrupt: Called from this thread with the error.
        say: Prints a line.
        look_seconds: Seconds between two looks at the job.
        silence_seconds: Seconds without a finished step that are worth a note.
    """

    def __init__(
        self,
        cluster: FlinkCluster,
        job: str,
        interrupt: Callable[[CurationError], None],
        say: Callable[[str], None],
        look_seconds: float = 2.0,
        silence_seconds: float = 90.0,
    ):
        super().__init__("flink watch")
        self._cluster = cluster
        self._job = job
        self._interrupt = interrupt
        self._say = say
        self._look_seconds = look_seconds
        self._silence_seconds = silence_seconds
        self._failures = 0
        self._began = time.monotonic()
        self._silent = False

    def run(self) -> None:
        """Watches the job until the block ends."""
        job_id = None
        while not self.ended.wait(self._look_seconds):
            # A failed look must not end the job; the next may succeed.
            with contextlib.suppress(OSError, ValueError, KeyError):
                job_id = job_id or _find(self._cluster, self._job)
                if job_id is not None and self._look(job_id):
                    return

    def _look(self, job_id: str) -> bool:
        history = _get(self._cluster.master, f"/jobs/{job_id}/exceptions")["exceptionHistory"][
            "entries"
        ]
        for entry in history:
            error = errors.find_in_text(entry["stacktrace"])
            if error is not None:
                self._interrupt(error)
                return True

        if len(history) > self._failures:
            newest = max(history, key=lambda entry: entry["timestamp"])
            self._say(
                f"a task failed ({newest['exceptionName']}); Flink restarts the job, which "
                "continues from the committed work"
            )
            self._failures = len(history)
        self._notice_silence(job_id)
        return False

    def _notice_silence(self, job_id: str) -> None:
        if self._silent or time.monotonic() - self._began < self._silence_seconds:
            return
        self._silent = True
        done = _get(self._cluster.master, f"/jobs/{job_id}")["status-counts"].get("FINISHED", 0)
        if not done:
            self._say(
                f"note: no step has finished in {self._silence_seconds:.0f} s. Are slots free, and "
                "does each task manager have a worker pool whose Python has apache-beam and "
                "datarater? "
                f"{self._cluster.master} shows the job {self._job}"
            )
