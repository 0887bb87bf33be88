"""The options of each runner, and the errors before a job goes to a cluster that is not ready."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    SetupOptions,
)
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from datarater.pipelines import errors
from datarater.pipelines.commands import requests
from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.runners import choice, execution, flink, prism
from datarater.pipelines.runners.flink import FlinkError
from tests.support.tensorflow_dataset import build_dataset


class JobManager:
    """Answers like the REST service of a Flink job manager, and records the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "/overview": {"flink-version": "1.19.0", "taskmanagers": 2, "slots-total": 6},
            "/taskmanagers": {
                "taskmanagers": [
                    {
                        "slotsNumber": 4,
                        "path": "akka.tcp://flink@127.0.0.2:40001/user/rpc/taskmanager_0",
                    },
                    {
                        "slotsNumber": 2,
                        "path": "akka.tcp://flink@localhost:40002/user/rpc/taskmanager_0",
                    },
                ]
            },
            "/jobmanager/config": [
                {"key": "restart-strategy.type", "value": "fixed-delay"},
                {"key": "restart-strategy.fixed-delay.delay", "value": "10 s"},
            ],
            "/jobs/overview": {
                "jobs": [
                    {"jid": "0", "name": "datarater-1", "state": "FAILED", "start-time": 1},
                    {"jid": "1", "name": "datarater-1", "state": "RUNNING", "start-time": 2},
                ]
            },
            "/jobs/1": {"status-counts": {"RUNNING": 3}},
            "/jobs/1/exceptions": {"exceptionHistory": {"entries": []}},
        }
        self.told: list[str] = []
        manager = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(manager.answers.get(self.path))

            def do_PATCH(self) -> None:
                manager.told.append(self.path)
                self._answer({})

            def _answer(self, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def job_manager() -> Iterator[JobManager]:
    manager = JobManager()
    yield manager
    manager.server.shutdown()
    manager.server.server_close()


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"localhost:{listener.getsockname()[1]}"


def on_flink(manager: JobManager, *more: str, runner: str = "FlinkRunner") -> execution.Execution:
    return choice.choose([f"--runner={runner}", f"--flink_master={manager.address}", *more], 1)


def test_every_slot_of_a_flink_cluster_gets_a_worker_process(job_manager: JobManager) -> None:
    execution = on_flink(job_manager)
    portable = execution.options.view_as(PortableOptions)
    assert execution.options.view_as(FlinkRunnerOptions).parallelism == execution.workers == 6
    assert int(portable.sdk_worker_parallelism) == 4
    assert (portable.environment_type, portable.environment_config) == (
        "EXTERNAL",
        "localhost:50000",
    )
    assert execution.options.view_as(FlinkRunnerOptions).flink_version == "1.19"
    assert execution.options.view_as(SetupOptions).save_main_session is False
    description = execution.describe()
    assert (
        f"FlinkRunner, Flink 1.19.0 at http://{job_manager.address}, 2 task managers, 6 slots; "
        "6 worker proce" in description
    )
    assert f"one scoring thread in each; job {execution.job_name}" in description


def test_what_a_user_gave_stays(job_manager: JobManager) -> None:
    given = [
        "--parallelism=3",
        "--sdk_worker_parallelism=1",
        "--environment_cache_millis=7",
        "--job_name=mine",
    ]
    execution = on_flink(job_manager, *given, "--environment_config=pool:1", "--flink_version=1.20")
    portable = execution.options.view_as(PortableOptions)
    assert (execution.workers, execution.job_name) == (3, "mine")
    assert (int(portable.sdk_worker_parallelism), int(portable.environment_cache_millis)) == (1, 7)
    assert (portable.environment_type, portable.environment_config) == ("EXTERNAL", "pool:1")
    assert execution.options.view_as(FlinkRunnerOptions).flink_version == "1.20"
    portable = on_flink(job_manager, "--environment_type=DOCKER").options.view_as(PortableOptions)
    assert (portable.environment_type, portable.environment_config) == ("DOCKER", None)


@pytest.mark.parametrize(
    ("delay", "millis"),
    [("10 s", 5000), ("500ms", 250), ("3000", 1500), ("2 min", 10_000), ("nonsense", 0)],
)
def test_no_job_gets_back_a_worker_that_is_dead(
    job_manager: JobManager, delay: str, millis: int
) -> None:
    job_manager.answers["/jobmanager/config"][1]["value"] = delay
    cached = on_flink(job_manager).options.view_as(PortableOptions).environment_cache_millis
    assert int(cached) == millis


def test_a_cluster_that_restarts_nothing_is_told(job_manager: JobManager) -> None:
    job_manager.answers["/jobmanager/config"] = []
    assert (
        "it has no restart strategy: a lost task manager or worker fails the job"
        in on_flink(job_manager).describe()
    )


def test_paths_mean_the_same_in_the_folders_that_workers_are_started_in(
    job_manager: JobManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, there = choice.choose([], 1), on_flink(job_manager)
    inputs = ["a/*, gs://b/*", "a,~/b"]
    assert requests.patterns_of(inputs, here, "text").patterns == tuple(inputs)
    assert requests.patterns_of(inputs, there, "text").patterns == (
        f"{tmp_path}/a/*",
        "gs://b/*",
        f"{tmp_path}/a",
        f"{Path.home()}/b",
    )

    build_dataset(tmp_path / "prepared", {"train": ["a text"]})
    tiny = requests.patterns_of(["tfds:tiny:1.0.0:train"], there, "text", "prepared").patterns
    assert [Path(path).parent for path in tiny] == [tmp_path / "prepared" / "tiny" / "1.0.0"]

    for flag in ("rater", "output", "reference"):
        assert requests.usable_path(flag, "run", here) == "run"
        assert requests.usable_path(flag, "run", there) == f"{tmp_path}/run"
        assert requests.usable_path(flag, "s3://run", there) == "s3://run"


def test_a_portable_runner_of_another_engine_is_left_alone(nobody: str) -> None:
    execution = choice.choose(["--runner=PortableRunner", f"--job_endpoint={nobody}"], 1)
    assert execution.cluster is None
    assert execution.options.view_as(PortableOptions).environment_type is None
    choice.check_ready(execution)


def test_a_job_manager_that_does_not_answer_is_named(nobody: str) -> None:
    with pytest.raises(
        FlinkError, match=f"no Flink job manager answers at http://{nobody} .*make flink"
    ):
        choice.choose(["--runner=FlinkRunner", f"--flink_master={nobody}"], 1)


def test_another_service_is_no_job_manager(job_manager: JobManager) -> None:
    job_manager.answers = {"/overview": {"hello": "world"}}
    with pytest.raises(FlinkError, match="no Flink job manager answers"):
        on_flink(job_manager)


def test_a_cluster_without_task_managers_or_slots_enough_is_refused(
    job_manager: JobManager,
) -> None:
    with pytest.raises(FlinkError, match=r"--parallelism 7: .* 6 slots, which is fewer"):
        on_flink(job_manager, "--parallelism=7")
    job_manager.answers["/overview"]["slots-total"] = 0
    with pytest.raises(FlinkError, match="have offered no slots yet"):
        on_flink(job_manager)
    job_manager.answers["/taskmanagers"] = {"taskmanagers": []}
    with pytest.raises(FlinkError, match="has no task manager yet"):
        on_flink(job_manager)


def test_a_version_of_flink_without_a_job_server_is_told(job_manager: JobManager) -> None:
    job_manager.answers["/overview"]["flink-version"] = "1.17.2"
    with pytest.raises(
        UsageError, match=r"Flink 1\.17\.2 runs there.*--flink_job_server_jar or --job_endpoint"
    ):
        on_flink(job_manager)
    assert on_flink(job_manager, "--job_endpoint=localhost:1").cluster is not None


def test_a_job_server_that_does_not_listen_is_named(job_manager: JobManager, nobody: str) -> None:
    with pytest.raises(
        FlinkError, match=f"--job_endpoint: Beam's job server does not listen at {nobody}"
    ):
        choice.check_ready(on_flink(job_manager, f"--job_endpoint={nobody}"))
    listening = [f"--job_endpoint={job_manager.address}", f"--artifact_endpoint={nobody}"]
    with pytest.raises(
        FlinkError, match=f"--artifact_endpoint: Beam's job server does not listen at {nobody}"
    ):
        choice.check_ready(on_flink(job_manager, *listening))


def test_java_is_missed_where_flink_runner_needs_it(job_manager: JobManager) -> None:
    with pytest.raises(
        FlinkError,
        match="starts Beam's job server with no-such-java, which is not installed; install Java",
    ):
        choice.check_ready(on_flink(job_manager, "--job_server_java_launcher=no-such-java"))


def test_a_worker_pool_that_does_not_listen_is_named(job_manager: JobManager, nobody: str) -> None:
    execution = on_flink(
        job_manager, f"--job_endpoint={job_manager.address}", f"--environment_config={nobody}"
    )
    with pytest.raises(
        FlinkError, match=f"no worker pool listens at {nobody}.*worker_pool_main --service_port"
    ):
        choice.check_ready(execution)


def test_a_worker_pool_beside_task_managers_elsewhere_is_not_looked_for(
    job_manager: JobManager, nobody: str
) -> None:
    """A forwarded port: the REST service seems to be on this machine, the task managers are not."""
    job_manager.answers["/taskmanagers"]["taskmanagers"][1]["path"] = (
        "akka.tcp://flink@10.1.2.3:6122/user/rpc/x"
    )
    execution = on_flink(
        job_manager, f"--job_endpoint={job_manager.address}", f"--environment_config={nobody}"
    )
    choice.check_ready(execution)


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """A worker pool whose workers are threads, or whose Python lacks Beam."""

    def __init__(self, *, works: bool) -> None:
        self._works = works
        self.stopped: list[str] = []

    def StartWorker(  # noqa: N802 - the name is Beam's
        self, request: Any, context: Any
    ) -> Any:
        def report() -> None:
            with grpc.insecure_channel(request.control_endpoint.url) as channel:
                list(beam_fn_api_pb2_grpc.BeamFnControlStub(channel).Control(iter(())))

        if self._works:
            threading.Thread(target=report, daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(  # noqa: N802 - the name is Beam's
        self, request: Any, context: Any
    ) -> Any:
        self.stopped.append(request.worker_id)
        return beam_fn_api_pb2.StopWorkerResponse()


@pytest.mark.parametrize("works", [True, False])
def test_a_worker_pool_is_tried_before_a_job_waits_for_it(works: bool) -> None:
    pool = Pool(works=works)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        if works:
            flink.check_worker_pool(address)
        else:
            with pytest.raises(
                FlinkError, match="started no worker that reports within 1 s; does the `python`"
            ):
                flink.check_worker_pool(address, seconds=1)
    finally:
        server.stop(None)
    assert len(pool.stopped) == 1


def test_what_listens_may_be_no_worker_pool(job_manager: JobManager) -> None:
    with pytest.raises(
        FlinkError, match=f"the process at {job_manager.address} is not a worker pool"
    ):
        flink.check_worker_pool(job_manager.address)


def test_a_pool_of_another_machine_is_not_reached_from_here() -> None:
    flink.check_worker_pool("workers.example.org:50000")
    assert flink.is_local("http://localhost:8081")
    assert flink.is_local("127.0.0.2:50000")
    assert not flink.is_local("https://flink.example.org:443/proxy")


def watch(manager: JobManager, seconds: float = 5.0) -> tuple[list[CurationError], list[str]]:
    """Returns the errors and lines of a watch over the job that ends after some seconds."""
    cluster = flink.look(manager.address)
    met: list[CurationError] = []
    lines: list[str] = []
    with flink.Watch(cluster, "datarater-1", met.append, lines.append, 0.05, 0.1) as watching:
        watching.join(seconds)
    return met, lines


def test_an_error_of_ours_ends_a_job_at_once(job_manager: JobManager) -> None:
    text = (
        "java.lang.RuntimeException: Error received from SDK harness: "
        "Traceback (most recent call last):\n  ...\n"
    )
    entry = {
        "exceptionName": "java.lang.RuntimeException",
        "timestamp": 1,
        "stacktrace": f"{text}datarater.pipelines.errors.UnreadableInputError: "
        "the input x cannot be read [while running 'S']",
    }
    job_manager.answers["/jobs/1/exceptions"]["exceptionHistory"]["entries"] = [entry]
    (met,), _ = watch(job_manager)
    assert (type(met), str(met)) == (errors.UnreadableInputError, "the input x cannot be read")
    flink.cancel(flink.look(job_manager.address), "datarater-1")
    assert job_manager.told == ["/jobs/1?mode=cancel"]


def test_other_failures_are_told_and_left_to_flink(job_manager: JobManager) -> None:
    entry = {
        "exceptionName": "java.util.concurrent.TimeoutException",
        "timestamp": 1,
        "stacktrace": "heartbeat",
    }
    job_manager.answers["/jobs/1/exceptions"]["exceptionHistory"]["entries"] = [entry]
    met, lines = watch(job_manager, 1.0)
    assert met == []
    assert len(lines) == 2
    assert lines[0].startswith(
        "a task failed (java.util.concurrent.TimeoutException); Flink restarts the job"
    )
    assert lines[1].startswith("note: no step has finished in 0 s. Are slots free")


def test_a_failed_job_is_one_line() -> None:
    cluster = flink.FlinkCluster("http://m:1", "1.19.0", 2, 2, 1)
    failed = RuntimeError(
        "Pipeline x_1 failed in state FAILED: java.io.IOException: no disk\n\tat a.b"
    )
    error = flink.why_failed(failed, cluster)
    assert str(error) == (
        "the job failed: java.io.IOException: no disk; http://m:1 shows more. Committed work is "
        "kept: run the same command to continue"
    )

    lacking = RuntimeError(
        "Pipeline x_1 failed in state FAILED: Traceback\nNo module named 'datarater'"
    )
    assert "the workers' Python lacks datarater (No module named 'datarater')" in str(
        flink.why_failed(lacking, cluster)
    )

    unfetched = RuntimeError(
        "Unable to fetch remote job server jar at https://x: 404.\nIf offline, stage it."
    )
    error = flink.why_failed(unfetched, cluster)
    assert str(error).startswith(
        "Unable to fetch remote job server jar at https://x: 404. If offline, stage"
    )
    assert str(error).endswith(
        "Or give --flink_job_server_jar=PATH, or --job_endpoint=HOST:PORT of a running job server"
    )
    assert flink.why_failed(RuntimeError("of some other kind"), cluster) is None


def test_prism_is_never_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    runner, built = ["--runner=PrismRunner"], tmp_path / "built" / "prism"
    with pytest.raises(
        UsageError, match=r"neither on PATH nor at .*make prism.*leave --runner out"
    ):
        prism.on_prism(runner, "PrismRunner", built)
    (tmp_path / "built").mkdir()
    for binary in (
        tmp_path / "built" / "prism",
        tmp_path / "prism",
    ):  # the second is on PATH, and goes first
        binary.write_text("#!/bin/sh\n")
        binary.chmod(0o755)
        execution = prism.on_prism(runner, "PrismRunner", built)
        assert execution.options.view_as(PrismRunnerOptions).prism_location == str(binary)
        assert execution.local
        assert not execution.supervised
    given = choice.choose(["--runner=PrismRunner", "--prism_location=elsewhere"], 1)
    assert given.options.view_as(PrismRunnerOptions).prism_location == "elsewhere"


def test_a_layout_says_where_a_local_run_works() -> None:
    execution = choice.choose([], 1)
    assert (
        execution.describe()
        == "FnApiRunner on this machine, in this process, one scoring thread in each"
    )
    assert isinstance(execution.options, PipelineOptions)
    assert (
        dataclasses.replace(execution, workers=2)
        .describe()
        .startswith("FnApiRunner on this machine, 2 worker")
    )


ON_DATAFLOW = ["--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t"]
GPU = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
ONE_PROCESS = "no_use_multiple_sdk_containers"


@pytest.mark.parametrize(
    ("flags", "threads", "one_process"),
    [
        ([], 1, 0),
        ([f"--dataflow_service_options={GPU}"], 4, 1),
        ([f"--experiments={GPU}"], 4, 1),  # as a Flex Template passes it
        ([f"--experiments={GPU}", f"--experiments={ONE_PROCESS}"], 4, 1),
        ([f"--experiments={GPU}", "--number_of_worker_harness_threads=2"], 2, 1),
    ],
)
def test_on_dataflow_a_gpu_has_one_process_whose_threads_read_ahead(
    flags: list[str], threads: int, one_process: int
) -> None:
    execution = choice.choose([*ON_DATAFLOW, *flags], 1)
    options = execution.options.view_as(DebugOptions)
    assert options.number_of_worker_harness_threads == threads
    assert (options.experiments or []).count(ONE_PROCESS) == one_process
    where = "per machine, whose threads share its GPU" if flags else "per vCPU, one scoring thread"
    assert where in execution.describe()


@pytest.mark.parametrize(
    ("requested", "splits", "workers", "note"),
    [
        (64, 1000, 4, "--local_workers 64: this machine has 4 cores, so 4 of them will work"),
        (64, 3, 3, "--local_workers 64: the run has at most 3 splits, so 3 of them will work"),
        (2, 1, 1, "--local_workers 2: the run has at most 1 split, so 1 of them will work"),
        (4, 4, 4, ""),
        (1, 1000, 1, ""),
    ],
)
def test_no_more_local_workers_start_than_there_are_cores_and_splits(
    requested: int, splits: int, workers: int, note: str
) -> None:
    chosen = choice.choose([], requested, max_workers=requested)
    limited, said = choice.limited(chosen, splits, cores=4)
    assert limited.workers == workers
    assert limited.supervised == (workers > 1)
    assert said == note
    assert choice.limited(limited, splits, cores=4)[0].workers == workers


def test_local_workers_are_at_most_one_a_core_from_the_start() -> None:
    cores = choice.available_cores()
    assert choice.choose([], 1000).workers == cores
    assert choice.choose([], 1000).requested_workers == 1000
    given = choice.choose(
        ["--direct_num_workers=3", "--direct_running_mode=multi_processing"], 1000
    )
    assert choice.limited(given, 1, cores=1) == (given, "")
