"""Flink: what a cluster has, what is missing before a job is submitted, and what goes wrong while it runs.

All of it is asked of the job manager's REST service, which every Flink cluster has; nothing but
that service, Beam's job server and, where it runs on this machine, the worker pool is reached from
here.
"""

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
from types import TracebackType
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

from datarater.pipelines import errors
from datarater.pipelines.errors import CurationError

DEFAULT_WORKER_POOL = "localhost:50000"
"""Where a task manager looks for its worker pool unless told otherwise: beside itself, as in one pod."""

_LOOK_SECONDS = 2.0
_REST_SECONDS = 10.0
_SILENCE_SECONDS = 90.0
_WORKER_SECONDS = 60.0
_LONGEST_CACHE_MILLIS = 10_000
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_ENDED = ("FAILED", "FINISHED", "CANCELED")
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|\[?::1\]?")


class FlinkError(CurationError):
    """A cluster, a job server or a worker pool is not as a job needs it, or a job failed; the message says why."""


@dataclasses.dataclass(frozen=True)
class FlinkCluster:
    """A Flink cluster, as its job manager describes it.

    Attributes:
        master: URL of its REST service.
        version: of Flink, as in 1.19.0.
        task_managers: how many.
        slots: of all of them.
        most_slots: of the task manager that has most.
        restarts: whether a job is started again after a task manager or worker is lost.
        restart_seconds: how long after.
        is_here: whether its task managers are processes of this machine.
    """

    master: str
    version: str
    task_managers: int
    slots: int
    most_slots: int
    restarts: bool = False
    restart_seconds: float = 0.0
    is_here: bool = False

    @property
    def environment_cache_millis(self) -> int:
        """How long workers are kept from one step to the next.

        Less than a job waits before it starts again, so that it never gets back a worker that is
        dead.
        """
        if not self.restarts:
            return _LONGEST_CACHE_MILLIS
        return min(_LONGEST_CACHE_MILLIS, int(self.restart_seconds * 1000 / 2))

    def describe(self) -> str:
        """A few words for a person."""
        restarts = (
            ""
            if self.restarts
            else "; it has no restart strategy: a lost task manager or worker fails the job"
        )
        managers = (
            "1 task manager" if self.task_managers == 1 else f"{self.task_managers} task managers"
        )
        return f"Flink {self.version} at {self.master}, {managers}, {self.slots} slots{restarts}"


def _url(master: str) -> str:
    master = master.strip().rstrip("/")
    return master if re.match("https?://", master) else f"http://{master}"


def _get(master: str, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"{_url(master)}{path}", timeout=_REST_SECONDS) as answer:
            return json.load(answer)
    except http.client.HTTPException as error:  # what listens there speaks something else
        raise OSError(f"no HTTP answer: {error!r}") from error


def look(master: str) -> FlinkCluster:
    """Asks a job manager what its cluster has.

    Args:
        master: host and port of its REST service, or a URL.

    Raises:
        FlinkError: it does not answer, or no task manager has joined it and offered slots.
    """
    try:
        overview = _get(master, "/overview")
        managers = _get(master, "/taskmanagers")["taskmanagers"]
        settings = {
            entry["key"]: str(entry["value"]) for entry in _get(master, "/jobmanager/config")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlinkError(
            f"--flink_master: no Flink job manager answers at {_url(master)} ({getattr(error, 'reason', error)}); it "
            "is the REST service that is wanted, by default on port 8081. `make flink` starts a cluster on this machine"
        ) from error
    if not managers:
        raise FlinkError(
            f"--flink_master: the job manager at {_url(master)} has no task manager yet; start some"
        )
    if overview["slots-total"] < 1:  # a task manager joins first, and offers its slots then
        raise FlinkError(
            f"--flink_master: the task managers of {_url(master)} have offered no slots yet; try again in a moment"
        )
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
    """Whether a task manager, by the address that it gave the job manager, is a process of this machine."""
    found = re.search(r"@([^:/]+)[:/]", str(manager.get("path", "")))
    return found is not None and (
        found[1] == socket.gethostname() or _LOOPBACK.fullmatch(found[1]) is not None
    )


def _seconds(duration: str) -> float:
    """A duration as Flink's configuration writes it: `10 s`, `500ms`; 0 for one that is not understood."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", duration.strip().lower())
    if match is None:
        return 0.0
    return int(match[1]) * _UNITS.get(match[2] or "ms", 0.0)


def check_parallelism(cluster: FlinkCluster, parallelism: int) -> None:
    """Refuses more workers than there are slots: the job would wait for them.

    Raises:
        FlinkError: naming both.
    """
    if parallelism > cluster.slots:
        raise FlinkError(
            f"--parallelism {parallelism}: {cluster.describe()}, which is fewer; add task managers or slots, or ask "
            f"for {cluster.slots}"
        )


def check_job_endpoint(flag: str, endpoint: str) -> None:
    """Refuses a job server that does not listen.

    Args:
        flag: what the message is to name.
        endpoint: host and port.

    Raises:
        FlinkError: naming both.
    """
    if reason := _refusal(endpoint):
        raise FlinkError(
            f"{flag}: Beam's job server does not listen at {endpoint} ({reason}); start it for your cluster, or leave "
            "the flag out and FlinkRunner starts its own"
        )


def check_java(launcher: str) -> None:
    """Refuses a machine without Java where FlinkRunner is to start Beam's job server.

    Raises:
        FlinkError: saying what to do.
    """
    if shutil.which(launcher) is None:
        raise FlinkError(
            f"FlinkRunner starts Beam's job server with {launcher}, which is not here; install Java, or give "
            "--job_endpoint=HOST:PORT of a job server that runs"
        )


def _refusal(address: str) -> str:
    """Why nothing listens at an address; "" where something does."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REST_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return str(error)


class _Greeter(beam_fn_api_pb2_grpc.BeamFnControlServicer):
    """What a worker reports to when it has started; sends it home."""

    def __init__(self) -> None:
        self.came = threading.Event()

    def Control(self, responses: Any, context: Any) -> Iterator[Any]:
        self.came.set()
        yield from ()


def check_worker_pool(address: str, seconds: float = _WORKER_SECONDS) -> None:
    """Has a worker pool of this machine start a worker, and waits until it reports.

    A pool whose Python lacks Beam starts workers that end at once, for which a job would wait for
    ever.

    Args:
        address: host and port; of another machine it cannot be reached from here, and nothing is
            done.
        seconds: how long a worker may take.

    Raises:
        FlinkError: nothing listens there, or no worker reports.
    """
    if not is_local(address):
        return
    if reason := _refusal(address):
        port = address.rpartition(":")[2]
        raise FlinkError(
            f"--environment_config: no worker pool listens at {address} ({reason}); start one beside each task "
            f"manager: python -m apache_beam.runners.worker.worker_pool_main --service_port={port}"
        )
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
            came = not reason and greeter.came.wait(seconds)
            pool.StopWorker(
                beam_fn_api_pb2.StopWorkerRequest(worker_id=name), timeout=2 * _REST_SECONDS
            )
    except grpc.RpcError as error:
        raise FlinkError(
            f"--environment_config: what listens at {address} is no worker pool ({_details(error)})"
        ) from error
    finally:
        server.stop(None)
    if not came:
        raise FlinkError(
            f"--environment_config: the worker pool at {address} started no worker that reports"
            f"{f': {reason}' if reason else f' within {seconds:.0f} s'}; has the `python` on its PATH apache-beam and "
            "datarater? Its log says more"
        )


def is_local(address: str) -> bool:
    """Whether an address, or a URL, is of this machine by its very name."""
    host = address.partition("://")[2] or address
    return _LOOPBACK.fullmatch(host.partition("/")[0].rpartition(":")[0]) is not None


def _details(error: BaseException) -> str:
    return " ".join(str(getattr(error, "details", lambda: error)()).split())


def why_failed(error: BaseException, cluster: FlinkCluster | None) -> FlinkError | None:
    """What to say of a job that failed, or whose job server could not be had or was lost, not by an error of ours.

    Args:
        error: what Beam raised.
        cluster: where the job ran, if that is known.

    Returns:
        An error of one line; None for what is no failure of a job.
    """
    more = f"; {cluster.master} shows more" if cluster is not None else ""
    if isinstance(error, grpc.RpcError | grpc.FutureTimeoutError):
        return FlinkError(
            f"the job server was lost ({_details(error)}): the job may go on or may be gone{more}. What is committed "
            "stays: run the same command to go on"
        )
    text = str(error)
    if isinstance(error, RuntimeError) and "job server jar" in text:
        return FlinkError(
            f"{' '.join(text.split())} Or give --flink_job_server_jar=PATH, or --job_endpoint=HOST:PORT of a job "
            "server that runs"
        )
    if not isinstance(error, RuntimeError) or "failed in state" not in text:
        return None
    absent = re.search(r"No module named '(?:pipelines|rater_model)[^']*'", text)
    if absent is not None:
        return FlinkError(
            f"the workers' Python lacks datarater ({absent[0]}); install it there{more}"
        )
    said = text.split(": ", 1)[-1].strip().splitlines()
    return FlinkError(
        f"the job failed: {said[0] if said else text}{more}. What is committed stays: run the same command to go on"
    )


def _find(cluster: FlinkCluster, job: str) -> str | None:
    """The id of the newest job of a name that has not ended; None before it has come to the cluster."""
    jobs = _get(cluster.master, "/jobs/overview")["jobs"]
    live = [found for found in jobs if found["name"] == job and found["state"] not in _ENDED]
    return max(live, key=lambda found: found["start-time"])["jid"] if live else None


def cancel(cluster: FlinkCluster, job: str) -> None:
    """Cancels a job that may still run; Beam's job server would only forget it, and Flink start it again and again.

    Args:
        cluster: where it runs.
        job: its name.
    """
    # A cluster that is gone runs nothing.
    with contextlib.suppress(OSError, ValueError, KeyError, http.client.HTTPException):
        job_id = _find(cluster, job)
        if job_id is not None:
            request = urllib.request.Request(
                f"{cluster.master}/jobs/{job_id}?mode=cancel", method="PATCH"
            )
            urllib.request.urlopen(request, timeout=_REST_SECONDS).close()


class Watch(threading.Thread):
    """Looks at a job while it runs: ends it for an error of ours, which another attempt would only meet again.

    Args:
        cluster: where it runs.
        job: its name.
        interrupt: called from this thread with the error of ours.
        say: prints a line.
    """

    def __init__(
        self,
        cluster: FlinkCluster,
        job: str,
        interrupt: Callable[[CurationError], None],
        say: Callable[[str], None],
    ):
        super().__init__(name="flink watch", daemon=True)
        self._cluster = cluster
        self._job = job
        self._interrupt = interrupt
        self._say = say
        self._ended = threading.Event()
        self._failures = 0
        self._asked = time.monotonic()
        self._silent = False

    def run(self) -> None:
        """Looks until the block ends."""
        job_id = None
        while not self._ended.wait(_LOOK_SECONDS):
            # Watching must not end what it watches; the next look may fare better.
            with contextlib.suppress(OSError, ValueError, KeyError):
                job_id = job_id or _find(self._cluster, self._job)
                if job_id is not None and self._look(job_id):
                    return

    def _look(self, job_id: str) -> bool:
        history = _get(self._cluster.master, f"/jobs/{job_id}/exceptions")["exceptionHistory"][
            "entries"
        ]
        for entry in history:
            found = errors.find_in_text(entry["stacktrace"])
            if found is not None:
                self._interrupt(found)
                return True
        if len(history) > self._failures:
            newest = max(history, key=lambda entry: entry["timestamp"])
            self._say(
                f"a task failed ({newest['exceptionName']}); Flink starts the job again from what is committed"
            )
            self._failures = len(history)
        self._notice_silence(job_id)
        return False

    def _notice_silence(self, job_id: str) -> None:
        if self._silent or time.monotonic() - self._asked < _SILENCE_SECONDS:
            return
        self._silent = True
        done = _get(self._cluster.master, f"/jobs/{job_id}")["status-counts"].get("FINISHED", 0)
        if not done:
            self._say(
                f"note: no step has ended in {_SILENCE_SECONDS:.0f} s. Are slots free, and has each task manager a "
                "worker pool whose Python has apache-beam and datarater? "
                f"{self._cluster.master} shows the job {self._job}"
            )

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self.join()
