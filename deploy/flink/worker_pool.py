"""A pool of worker processes next to a task manager: an EXTERNAL environment in Beam's terms.

    python -m deploy.flink.worker_pool HOST:PORT

The pool serves the same calls as `apache_beam.runners.worker.worker_pool_main`. A worker runs in
the Python interpreter of the pool, so it has the same packages, and writes to the log of the pool.
Workers end with their pool, and the pool ends with the cluster.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils import thread_pool_executor

from datarater.pipelines.run_folder import split_marks
from datarater.pipelines.run_folder.lease import Process, process_id
from datarater.rater_model.json_codec import decode, to_plain

_LOGGER = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2


class WorkerPool(BeamFnExternalWorkerPoolServicer):
    """Starts and stops worker processes for a task manager."""

    def __init__(self) -> None:
        super().__init__(use_process=True)

    def StartWorker(  # noqa: N802  (the name of the remote call)
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: grpc.ServicerContext
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        """Starts a worker process that connects to the task manager."""
        command = [
            sys.executable,
            "-m",
            "deploy.flink.worker",
            request.control_endpoint.url,
            request.worker_id,
        ]
        environment = {
            **os.environ,
            split_marks.WATCHED_PROCESS: json.dumps(to_plain(process_id())),
        }
        try:
            worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=f"{command}: {error}")

        self._worker_processes[request.worker_id] = worker
        _LOGGER.info("worker %s is process %d", request.worker_id, worker.pid)
        threading.Thread(target=self._wait, args=(request.worker_id, worker), daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def _wait(self, name: str, worker: subprocess.Popen[bytes]) -> None:
        _LOGGER.info("worker %s, process %d, ended with %d", name, worker.pid, worker.wait())

    def stop(self) -> None:
        """Stops all workers."""
        for worker in list(self._worker_processes.values()):
            worker.terminate()


def main() -> None:
    """Serves at the given address until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    watched = os.environ.pop(split_marks.WATCHED_PROCESS, None)
    if watched:
        split_marks.die_with(decode(Process, watched.encode()))

    # Without SO_REUSEPORT a second pool at the same address fails to start. With it, the two pools
    # would share the requests.
    pool = WorkerPool()
    server = grpc.server(
        thread_pool_executor.shared_unbounded_instance(), options=[("grpc.so_reuseport", 0)]
    )
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.add_insecure_port(sys.argv[1])
    server.start()
    _LOGGER.info("the worker pool listens at %s", sys.argv[1])

    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    while not signals:
        time.sleep(_LOOK_SECONDS)
    pool.stop()


if __name__ == "__main__":
    main()
