"""A Flink cluster on one machine: a job manager, task managers, a worker pool beside each, and Beam's job server.

It stands for a cluster of several machines as nearly as one machine can: the task managers are
processes of their own, and each finds at `localhost` its own worker pool, on a loopback address of
its own, as a task manager does that shares a pod with its pool.
"""

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
from deploy.flink import java, supervisor
from deploy.flink.java import ClusterError
from deploy.flink.supervisor import Command, write_json

CLUSTER = "cluster.json"
DEFAULT_FOLDER = Path(".flink")
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_SECONDS_TO_START = 120.0
_SECONDS_TO_END = 15.0
_ROOT = Path(__file__).resolve().parents[2]

# Ports that other tools expect, taken where they are free.
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
# A task manager that is gone is noticed after two heartbeats; one that is slow, on a busy machine,
# is waited for.
heartbeat.interval: 2000
heartbeat.timeout: 60000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 10 s
slot.request.timeout: 120000
# Beam's classes are the cluster's own, not the copies that come with each job: else no worker
# outlives a step.
classloader.resolve-order: parent-first
# Exchanges between steps: little goes through each, and several are open at a time.
taskmanager.network.sort-shuffle.min-buffers: 64
"""

# Small: the texts are in the workers, and never pass through Flink.
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
    """What a command needs to know to submit to the cluster.

    Attributes:
        flink_master: host and port of the job manager's REST service.
        job_endpoint: of Beam's job server.
        artifact_endpoint: likewise.
        worker_pool: where each task manager finds its own worker pool.
        job_server_jar: for FlinkRunner without a job server that runs already.
        task_managers: how many.
        slots: of each task manager.
        pools: the addresses of the worker pools as this machine sees them.
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
        """The flags that send a command to this cluster."""
        return [
            "--runner=FlinkRunner",
            f"--flink_master={self.flink_master}",
            f"--job_endpoint={self.job_endpoint}",
            f"--environment_config={self.worker_pool}",
        ]

    def overview(self) -> dict[str, Any]:
        """What the job manager says of its cluster.

        Raises:
            OSError: it does not answer.
        """
        with urllib.request.urlopen(f"http://{self.flink_master}/overview", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def missing(self) -> str:
        """What is not up yet, in words; "" if all is."""
        try:
            overview = self.overview()
        except (OSError, ValueError):
            return f"the job manager does not answer at {self.flink_master}"
        if overview["taskmanagers"] < self.task_managers:
            return f"{overview['taskmanagers']} of {self.task_managers} task managers are there"
        if (
            overview["slots-total"] < self.task_managers * self.slots
        ):  # offered a moment after joining
            return f"{overview['slots-total']} of {self.task_managers * self.slots} slots are there"
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
    """A port that is free at all hosts: the preferred one if it is.

    Raises:
        ClusterError: one of the hosts is no address of this machine.
    """
    for port in (preferred, *[0] * 20):
        with contextlib.ExitStack() as opened:
            found = port
            try:
                for host in hosts:
                    listener = opened.enter_context(socket.socket())
                    # A port of a server that has just ended is free.
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind((host, found))
                    found = listener.getsockname()[1]
            except PermissionError:
                continue
            except OSError as error:
                if host != "127.0.0.1" and not _is_mine(host):
                    raise ClusterError(
                        f"this machine has no loopback address {host}, which a task manager's worker pool needs: "
                        f"{error.strerror} (on macOS: sudo ifconfig lo0 alias {host})"
                    ) from error
                continue
            return found
    raise ClusterError("no free port was found")


def _is_mine(host: str) -> bool:
    with contextlib.suppress(OSError), socket.socket() as listener:
        listener.bind((host, 0))
        return True
    return False


def _plan(
    folder: Path, jars: Path, task_managers: int, slots: int
) -> tuple[Cluster, list[Command]]:
    """Chooses ports and writes the configuration."""
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
    run = [java.find_java(), *java.options(), f"-Djava.io.tmpdir={folder / 'tmp'}"]
    on_jars = ["-cp", java.class_path(jars)]
    configured = ["--configDir", str(folder / "conf")]
    commands = [Command("job-manager", [*run, "-Xmx512m", *on_jars, _JOB_MANAGER, *configured])]
    memory = [
        f"-D{name}={value.format(slots=slots)}" for name, value in _TASK_MANAGER_MEMORY.items()
    ]
    python_path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for number, host in enumerate(hosts, 1):
        names = folder / f"conf/hosts-{number}"
        names.write_text(f"{host} localhost\n127.0.0.1 {socket.gethostname()}\n")
        itself = [f"-Dtaskmanager.resource-id=task-manager-{number}", *memory]
        argv = [
            *run,
            f"-Djdk.net.hosts.file={names}",
            *_TASK_MANAGER_HEAP,
            *on_jars,
            _TASK_MANAGER,
            *configured,
        ]
        commands.append(Command(f"task-manager-{number}", [*argv, *itself]))
        serve = [sys.executable, "-m", "deploy.flink.worker_pool", f"{host}:{pool}"]
        # Workers share nothing but what the job's paths lead to, as on a cluster of many machines.
        temporary = folder / f"tmp-{number}"
        temporary.mkdir(exist_ok=True)
        environment = {"PYTHONPATH": python_path, "TMPDIR": str(temporary)}
        commands.append(
            Command(f"worker-pool-{number}", serve, environment, str(folder / f"work-{number}"))
        )
    server = [
        java.JOB_SERVER_CLASS,
        "--flink-master",
        cluster.flink_master,
        "--job-host",
        "localhost",
    ]
    server += ["--job-port", str(job), "--artifact-port", str(artifacts), "--expansion-port", "0"]
    # With each job the server sends what is on its class path to the cluster, which has it all: the
    # greater part, of other projects, is out of sight there.
    own, others = java.split_class_path(jars)
    on_jars = [f"-Xbootclasspath/a:{others}", "-cp", own]
    commands.append(
        Command(
            "job-server", [*run, "-Xmx512m", *on_jars, *server, "--artifacts-dir", f"{folder}/tmp"]
        )
    )
    return cluster, commands


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder against another `up` or `down`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read(folder: Path) -> Cluster | None:
    """The folder's cluster, None if none is up."""
    if not any(name == supervisor.SUPERVISOR for name, _ in supervisor.running(folder)):
        return None
    fields = json.loads((folder / CLUSTER).read_bytes())
    return Cluster(**{**fields, "pools": tuple(fields["pools"])})


def up(
    folder: Path, jars: Path, task_managers: int = 2, slots: int = 1, *, until_exit: bool = False
) -> Cluster:
    """Brings a cluster up, unless the folder's is.

    Args:
        folder: for its configuration, logs and process ids.
        jars: the folder that jars are fetched into.
        task_managers: how many.
        slots: of each.
        until_exit: whether the cluster ends with this process, however that ends.

    Returns:
        The cluster, once all of it answers.

    Raises:
        ClusterError: saying what is missing, with the end of the log that tells why.
    """
    folder = folder.absolute()
    with _alone(folder):
        cluster = read(folder)
        if cluster is not None and (cluster.task_managers, cluster.slots) != (task_managers, slots):
            raise ClusterError(
                f"the cluster in {folder} has {cluster.task_managers} task managers with {cluster.slots} slots each; "
                "take it down first"
            )
        if cluster is None:
            _end(folder)
            cluster, commands = _plan(folder, java.fetch_jars(jars), task_managers, slots)
            logs = folder / supervisor.LOGS
            logs.mkdir(exist_ok=True)
            for old in logs.iterdir():
                old.unlink()
            write_json(folder / CLUSTER, dataclasses.asdict(cluster))
            write_json(
                folder / supervisor.COMMANDS, [dataclasses.asdict(command) for command in commands]
            )
            end_with = [json.dumps(process_id())] if until_exit else []
            with open(logs / f"{supervisor.SUPERVISOR}.log", "ab") as log:
                subprocess.Popen(
                    [sys.executable, "-m", "deploy.flink.supervisor", str(folder), *end_with],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": commands[2].environment["PYTHONPATH"]},
                )
        _wait(folder, cluster)
        return cluster


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
    """Takes the folder's cluster down, whatever is left of it; says whether there was anything."""
    folder = folder.absolute()
    if not folder.is_dir():
        return False
    with _alone(folder):
        return _end(folder)


def _end(folder: Path) -> bool:
    found = dict(supervisor.running(folder))
    if supervisor.SUPERVISOR in found:
        os.kill(found[supervisor.SUPERVISOR], signal.SIGTERM)
        end = time.monotonic() + _SECONDS_TO_END
        while list(supervisor.running(folder)) and time.monotonic() < end:
            time.sleep(0.1)
    # What a supervisor left that was killed itself.
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + _SECONDS_TO_END
        left = dict(supervisor.running(folder))
        for pid in left.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while list(supervisor.running(folder)) and time.monotonic() < end:
            time.sleep(0.1)
    (folder / supervisor.PROCESSES).unlink(missing_ok=True)
    for temporary in folder.glob("tmp*"):  # copies of jars, which a killed process leaves
        shutil.rmtree(temporary, ignore_errors=True)
    return bool(found)
