"""A Dataflow service on loopback: it takes jobs as the real one does, and runs what was staged.

It speaks `projects.locations.jobs` create and get, and lists messages. A job that arrives names its
pipeline in a bucket; that pipeline is fetched from there and run by a portable runner, so that what
was submitted is what works.
"""

import contextlib
import dataclasses
import json
import re
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from datarater.pipelines.run_folder import commits

EMBEDDED = "beam:env:embedded_python:v1"


@dataclasses.dataclass
class Job:
    """A submitted job.

    Attributes:
        description: as it was sent.
        state: as Dataflow names it.
        error: a traceback, if it failed.
    """

    description: dict[str, Any]
    state: str = "JOB_STATE_RUNNING"
    error: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """The pipeline's options, as workers get them."""
        options: dict[str, Any] = self.description["environment"]["sdkPipelineOptions"]["options"]
        return options

    def staged_pipeline(self) -> beam_runner_api_pb2.Pipeline:
        """The pipeline that lies in the bucket."""
        return beam_runner_api_pb2.Pipeline.FromString(
            commits.read_bytes(self.options["pipelineUrl"])
        )

    def run(self) -> None:
        """Runs the staged pipeline in this process, in the place of its workers' containers."""
        try:
            pipeline = self.staged_pipeline()
            for environment in pipeline.components.environments.values():
                environment.urn, environment.payload = EMBEDDED, b""
                del environment.dependencies[:]
            FnApiRunner().run_via_runner_api(pipeline, PipelineOptions()).wait_until_finish()
            self.state = "JOB_STATE_DONE"
        except Exception:  # whatever it is, it is the job's, and told as Dataflow tells it
            self.error = traceback.format_exc()
            self.state = "JOB_STATE_FAILED"


class _Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("localhost", 0), _Handler)
        self.jobs: dict[str, Job] = {}
        self.threads: list[threading.Thread] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Service

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _answer(self, status: int, fields: dict[str, Any]) -> None:
        body = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Creates a job."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        if not re.fullmatch(
            r"/v1b3/projects/[^/]+/locations/[^/]+/jobs", self.path.partition("?")[0]
        ):
            self._answer(404, {"error": {"code": 404, "message": f"no method {self.path}"}})
            return
        name = f"job-{len(self.server.jobs)}"
        job = self.server.jobs[name] = Job(body)
        thread = threading.Thread(target=job.run, daemon=True)
        self.server.threads.append(thread)
        thread.start()
        self._answer(200, self._fields(name, job))

    def _fields(self, name: str, job: Job) -> dict[str, Any]:
        fields: dict[str, Any] = {"id": name, "currentState": job.state}
        for field in ("name", "projectId", "location", "type", "clientRequestId"):
            if field in job.description:
                fields[field] = job.description[field]
        return fields

    def do_GET(self) -> None:
        """A job, its messages or its metrics."""
        found = re.fullmatch(
            r"/v1b3/projects/[^/]+/locations/[^/]+/jobs/([^/]+)(/messages|/metrics)?",
            self.path.partition("?")[0],
        )
        job = self.server.jobs.get(found[1]) if found else None
        if found is None or job is None:
            self._answer(404, {"error": {"code": 404, "message": f"no job {self.path}"}})
        elif found[2] == "/messages":
            importance = "JOB_MESSAGE_ERROR"
            message = {
                "id": "1",
                "time": "2026-01-01T00:00:00Z",
                "messageText": job.error,
                "messageImportance": importance,
            }
            self._answer(200, {"jobMessages": [message] if job.error else []})
        elif found[2] == "/metrics":
            self._answer(200, {"metrics": []})
        else:
            self._answer(200, self._fields(found[1], job))


@dataclasses.dataclass
class Dataflow:
    """A running service.

    Attributes:
        url: its endpoint.
        jobs: by id, in the order of their submission.
    """

    url: str
    jobs: dict[str, Job]


@contextlib.contextmanager
def dataflow_service() -> Iterator[Dataflow]:
    """Runs the service while its block runs."""
    service = _Service()
    threading.Thread(target=service.serve_forever, daemon=True).start()
    try:
        yield Dataflow(f"http://localhost:{service.server_address[1]}", service.jobs)
    finally:
        service.shutdown()
        service.server_close()
        for thread in service.threads:
            thread.join(60)
