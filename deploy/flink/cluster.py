"""A Flink cluster on one machine: job manager, task managers with worker pools, Beam's job server.

It imitates a cluster of several machines: every task manager is a separate process and reaches its
own worker pool at `localhost`, on its own loopback address, like a task manager that shares a pod
with its pool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datarater.pipelines.run_folder.lease import process_id
from datarater.rater_model.atomic_files import write_json
from datarater.rater_model.json_codec import to_plain
from deploy.flink import java, supervisor
from deploy.flink.java import ClusterError
from deploy.flink.supervisor import Command

CLUSTER = "cluster.json"
DEFAULT_FOLDER = Path(".flink")
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_SECONDS_TO_START = 120.0
_SECONDS_TO_END = 15.0
_ROOT = Path(__file__).resolve().parents[2]

# The usual ports of these services, used if they are free.
_REST_PORT, _JOB_PORT, _ARTIFACT_PORT, _POOL_PORT = 8081, 8099, 8098, 50000

_FLINK_CONF = """\
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc_port}
jobmanager.bind-host: 127.0.0.1
rest.address: localhost
rest.bind-address: 127.0.0.1
rest.port: {rest_port}
taskmanager.host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.numberOfTaskSlots: {slots}
io.tmp.dirs: {temporary}
# A task manager that is gone is noticed after two heartbeats. The long timeout tolerates a task
# manager that is slow because the machine is busy.
heartbeat.interval: 2000
heartbeat.timeout: 60000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 10 s
slot.request.timeout: 120000
# Use Beam's classes of the cluster, not the copies that come with each job: with those, no worker
# survives a step.
classloader.resolve-order: parent-first
# Steps exchange little data, but several exchanges are open at a time.
taskmanager.network.sort-shuffle.min-buffers: 64
"""

# Little memory suffices: the texts stay in the workers and never pass through Flink.
_TASK_MANAGER_MEMORY = {
    "taskmanager.cpu.cores": "{slots}.0",
    "taskmanager.memory.task.heap.size": "256m",
    "taskmanager.memory.task.off-heap.size": "64m",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.network.min": "192m",
    "taskmanager.memory.network.max": "192m",
    "taskmanager.memory.managed.size": "128m",
    "taskmanager.memory.jvm-metaspace.size": "192m",
    "taskmanager.memory.jvm-overhead.min": "128m",
    "taskmanager.memory.jvm-overhead.max": "128m",
}
_TASK_MANAGER_HEAP = [
    "-Xms384m",
    "-Xmx384m",
    "-XX:MaxDirectMemorySize=384m",
    "-XX:MaxMetaspaceSize=192m",
]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The addresses that a command needs to submit to the cluster, as `host:port`.

    Attributes:
        flink_master: Address of the job manager's REST service.
        job_endpoint: Address at which Beam's job server accepts jobs.
        artifact_endpoint: Address at which Beam's job server accepts artifacts.
        worker_pool: Address at which each task manager reaches its own worker pool.
        job_server_jar: Path of the jar from which FlinkRunner can start its own job server.
        task_managers: Number of task managers.
        slots: Number of slots per task manager.
        pools: Addresses of the worker pools as seen from this machine.
    """

    flink_master: str
    job_endpoint: str
    artifact_endpoint: str
    worker_pool: str
    job_server_jar: str
    task_managers: int
    slots: int
    pools: tuple[str, ...]

    def flags(self) -> list[str]:
        """Returns the flags that send a command to this cluster."""
        return [
            "--runner=FlinkRunner",
            f"--flink_master={self.flink_master}",
            f"--job_endpoint={self.job_endpoint}",
            f"--environment_config={self.worker_pool}",
        ]

    def overview(self) -> dict[str, Any]:
        """Returns the job manager's overview of the cluster.

        Raises:
            OSError: The job manager does not answer.
        """
        with urllib.request.urlopen(f"http://{self.flink_master}/overview", timeout=5) as answer:
            overview: dict[str, Any] = json.load(answer)
        return overview

    def missing(self) -> str:
        """Describes the first part that is not up yet; returns "" if all parts are."""
        try:
            overview = self.overview()
        except (OSError, ValueError):
            return f"the job manager does not answer at {self.flink_master}"

        # A task manager offers its slots a moment after it has joined.
        if overview["taskmanagers"] < self.task_managers:
            return f"{overview['taskmanagers']} of {self.task_managers} task managers have joined"
        slots = self.task_managers * self.slots
        if overview["slots-total"] < slots:
            return f"{overview['slots-total']} of {slots} slots are available"

        if not _listens(self.job_endpoint):
            return f"Beam's job server does not listen at {self.job_endpoint}"
        for pool in self.pools:
            if not _listens(pool):
                return f"no worker pool listens at {pool}"
        return ""


def _listens(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False


def _free_port(preferred: int, hosts: Sequence[str] = ("127.0.0.1",)) -> int:
    """Returns a port that is free at all hosts: the preferred one if possible.

    Raises:
        ClusterError: One of the hosts is not an address of this machine, or no port is free.
    """
    # Port 0 lets the system choose; its choice for the first host may be taken at another one.
    for candidate in (preferred, *[0] * 20):
        with contextlib.ExitStack() as opened:
            port = candidate
            try:
                for host in hosts:
                    listener = opened.enter_context(socket.socket())
                    # The port of a server that has just ended counts as free.
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind((host, port))
                    port = listener.getsockname()[1]

            except PermissionError:
                continue
            except OSError as error:
                if host != "127.0.0.1" and not _is_local(host):
                    raise ClusterError(
                        f"this machine has no loopback address {host}, which the worker pool of a "
                        f"task manager needs: {error.strerror} "
                        f"(on macOS: sudo ifconfig lo0 alias {host})"
                    ) from error
                continue
            return port
    raise ClusterError("there is no free port")


def _is_local(host: str) -> bool:
    with contextlib.suppress(OSError), socket.socket() as listener:
        listener.bind((host, 0))
        return True
    return False


def _plan(
    folder: Path, jars: Path, task_managers: int, slots: int
) -> tuple[Cluster, list[Command]]:
    """Chooses ports, writes the configuration and returns the commands that make up the cluster."""
    hosts = [f"127.0.0.{number}" for number in range(1, task_managers + 1)]
    rest, rpc = _free_port(_REST_PORT), _free_port(0)
    job, artifacts = _free_port(_JOB_PORT), _free_port(_ARTIFACT_PORT)
    pool = _free_port(_POOL_PORT, hosts)
    cluster = Cluster(
        flink_master=f"localhost:{rest}",
        job_endpoint=f"localhost:{job}",
        artifact_endpoint=f"localhost:{artifacts}",
        worker_pool=f"localhost:{pool}",
        job_server_jar=str(jars / java.JOB_SERVER_JAR),
        task_managers=task_managers,
        slots=slots,
        pools=tuple(f"{host}:{pool}" for host in hosts),
    )

    (folder / "conf").mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "conf/flink-conf.yaml").write_text(
        _FLINK_CONF.format(rpc_port=rpc, rest_port=rest, slots=slots, temporary=folder / "tmp")
    )

    run_java = [java.find_java(), *java.options(), f"-Djava.io.tmpdir={folder / 'tmp'}"]
    run_flink = [*run_java, "-cp", java.class_path(jars)]
    configured = ["--configDir", str(folder / "conf")]
    commands = [Command("job-manager", [*run_flink, "-Xmx512m", _JOB_MANAGER, *configured])]
    for number, address in enumerate(cluster.pools, 1):
        commands += [
            _task_manager(number, hosts[number - 1], slots, folder, run_flink),
            _worker_pool(number, address, folder),
        ]
    commands.append(_job_server(cluster, jars, folder, run_java))
    return cluster, commands


def _task_manager(
    number: int, host: str, slots: int, folder: Path, run_flink: Sequence[str]
) -> Command:
    # In this file `localhost` is the loopback address of the task manager's own worker pool.
    hosts_file = folder / f"conf/hosts-{number}"
    hosts_file.write_text(f"{host} localhost\n127.0.0.1 {socket.gethostname()}\n")
    argv = [
        *run_flink,
        f"-Djdk.net.hosts.file={hosts_file}",
        *_TASK_MANAGER_HEAP,
        _TASK_MANAGER,
        "--configDir",
        str(folder / "conf"),
        f"-Dtaskmanager.resource-id=task-manager-{number}",
    ]
    argv += [
        f"-D{name}={value.format(slots=slots)}" for name, value in _TASK_MANAGER_MEMORY.items()
    ]
    return Command(f"task-manager-{number}", argv)


def _worker_pool(number: int, address: str, folder: Path) -> Command:
    # Workers share only what the paths of the job lead to, as on a cluster of several machines.
    temporary = folder / f"tmp-{number}"
    temporary.mkdir(exist_ok=True)
    return Command(
        f"worker-pool-{number}",
        [sys.executable, "-m", "deploy.flink.worker_pool", address],
        {"PYTHONPATH": _python_path(), "TMPDIR": str(temporary)},
        str(folder / f"work-{number}"),
    )


def _python_path() -> str:
    """Returns a PYTHONPATH that lets processes in other folders import this package."""
    return os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _job_server(cluster: Cluster, jars: Path, folder: Path, run_java: Sequence[str]) -> Command:
    # With each job the server sends the jars of its class path to the cluster, which already has
    # them. The boot class path hides the larger part, the jars of other projects, from it.
    own, others = java.split_class_path(jars)
    argv = [*run_java, "-Xmx512m", f"-Xbootclasspath/a:{others}", "-cp", own]
    argv += [java.JOB_SERVER_CLASS, "--flink-master", cluster.flink_master]
    argv += ["--job-host", "localhost", "--job-port", cluster.job_endpoint.rpartition(":")[2]]
    argv += ["--artifact-port", cluster.artifact_endpoint.rpartition(":")[2]]
    argv += ["--expansion-port", "0", "--artifacts-dir", f"{folder}/tmp"]
    return Command("job-server", argv)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the folder against another `up` or `down`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read(folder: Path) -> Cluster | None:
    """Returns the cluster of a folder; None if it is not up."""
    if not any(name == supervisor.SUPERVISOR for name, _ in supervisor.running(folder)):
        return None
    fields = json.loads((folder / CLUSTER).read_bytes())
    return Cluster(**{**fields, "pools": tuple(fields["pools"])})


def up(
    folder: Path, jars: Path, task_managers: int = 2, slots: int = 1, *, until_exit: bool = False
) -> Cluster:
    """Starts a cluster unless the folder's cluster is already up.

    Args:
        folder: Folder for the configuration, the logs and the process ids.
        jars: Folder for the jars, which are fetched if they are missing.
        task_managers: Number of task managers.
        slots: Number of slots per task manager.
        until_exit: Whether the cluster ends together with this process, even if it is killed.

    Returns:
        The cluster, once all its parts answer.

    Raises:
        ClusterError: A part is missing or does not start; the message ends with the ends of the
            logs.
    """
    folder = folder.absolute()
    with _locked(folder):
        cluster = read(folder)
        if cluster is not None and (cluster.task_managers, cluster.slots) != (task_managers, slots):
            raise ClusterError(
                f"the cluster in {folder} has {cluster.task_managers} task managers with "
                f"{cluster.slots} slots each; take it down first"
            )
        if cluster is None:
            # A supervisor that was killed may have left processes behind.
            _end(folder)
            cluster, commands = _plan(folder, java.fetch_jars(jars), task_managers, slots)
            write_json(folder / CLUSTER, dataclasses.asdict(cluster))
            _start_supervisor(folder, commands, until_exit=until_exit)
        _wait(folder, cluster)
        return cluster


def _start_supervisor(folder: Path, commands: Sequence[Command], *, until_exit: bool) -> None:
    logs = folder / supervisor.LOGS
    logs.mkdir(exist_ok=True)
    for old in logs.iterdir():
        old.unlink()
    write_json(folder / supervisor.COMMANDS, [dataclasses.asdict(command) for command in commands])

    end_with = [json.dumps(to_plain(process_id()))] if until_exit else []
    with open(logs / f"{supervisor.SUPERVISOR}.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "deploy.flink.supervisor", str(folder), *end_with],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": _python_path()},
        )


def _wait(folder: Path, cluster: Cluster) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while missing := cluster.missing():
        if time.monotonic() > end:
            logs = sorted((folder / supervisor.LOGS).glob("*.log"))
            ends = [f"{log}:\n{log.read_text(errors='replace')[-500:]}" for log in logs]
            raise ClusterError(
                f"{missing} after {_SECONDS_TO_START:.0f} s. The ends of the logs:\n"
                + "\n".join(ends)
            )
        time.sleep(0.25)


def down(folder: Path) -> bool:
    """Stops whatever is left of the folder's cluster; returns whether anything was running."""
    folder = folder.absolute()
    if not folder.is_dir():
        return False
    with _locked(folder):
        return _end(folder)


def _end(folder: Path) -> bool:
    running = dict(supervisor.running(folder))
    if supervisor.SUPERVISOR in running:
        os.kill(running[supervisor.SUPERVISOR], signal.SIGTERM)
        end = time.monotonic() + _SECONDS_TO_END
        while list(supervisor.running(folder)) and time.monotonic() < end:
            time.sleep(0.1)

    # A supervisor that was itself killed left its processes running.
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + _SECONDS_TO_END
        left = dict(supervisor.running(folder))
        for pid in left.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while list(supervisor.running(folder)) and time.monotonic() < end:
            time.sleep(0.1)

    # A killed process leaves copies of the jars in its temporary folder.
    (folder / supervisor.PROCESSES).unlink(missing_ok=True)
    for temporary in folder.glob("tmp*"):
        shutil.rmtree(temporary, ignore_errors=True)
    return bool(running)
