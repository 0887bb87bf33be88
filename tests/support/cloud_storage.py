"""Cloud Storage on loopback: an emulator behind a proxy that adds the guarantees it lacks.

The emulator ignores generation preconditions. The proxy holds them: of uploads that ask for
`ifGenerationMatch=0`, one succeeds and the others get 412. It also fails on demand as the real
store does: with 429 and 503, with 401 and 403, and by losing the answer to a request that
succeeded.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from gcp_storage_emulator.server import create_server

from tests.support.request_log import Kind, RequestLog, Served

LOOPBACK = "127.0.0.1"
_MADE_UP = {"Transfer-Encoding", "Connection", "Content-Length", "Server", "Date"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asks.

    Attributes:
        method: of HTTP.
        path: without the query.
        query: the query's first values.
        body: all of it.
    """

    method: str
    path: str
    query: dict[str, str]
    body: bytes

    @property
    def is_upload(self) -> bool:
        """Whether it creates an object, or begins to."""
        return self.method == "POST" and self.path.startswith("/upload/")

    @property
    def kind(self) -> Kind:
        """What it asks."""
        if self.method == "GET":
            if self.query.get("alt") == "media" or self.path.startswith("/download/"):
                return Kind.GET
            return Kind.HEAD if re.search(r"/o/.+$", self.path) else Kind.LIST
        if self.method in ("HEAD", "DELETE"):
            return Kind(self.method.lower())
        return Kind.CREATE if "ifGenerationMatch" in self.query else Kind.PUT

    @property
    def object_name(self) -> str:
        """Bucket and name of the object that it is about; "" for none."""
        bucket = re.search(r"/b/([^/]+)", self.path)
        if bucket is None:
            return ""
        name = self.query.get("name", "")
        if (
            self.is_upload
            and not name
            and (found := re.search(rb'"name": ?("(?:[^"\\]|\\.)*")', self.body))
        ):
            name = json.loads(found[1])
        if not name and (tail := re.search(r"/o/(.+)$", self.path)):
            name = unquote(tail[1])
        return f"{bucket[1]}/{name}"


Fault = Callable[[Request], int | None]
"""Returns the status for a request, `LOST` to execute it and drop the reply, or None to pass it."""
LOST = -1


def times(count: int, status: int, wanted: Callable[[Request], bool]) -> Fault:
    """Answers the first `count` requests that are wanted with a status."""
    lock, left = threading.Lock(), [count]

    def fault(request: Request) -> int | None:
        if not wanted(request):
            return None
        with lock:
            if not left[0]:
                return None
            left[0] -= 1
        return status

    return fault


@dataclasses.dataclass
class CloudStorage:
    """A running store.

    Attributes:
        url: of its endpoint.
        faults: asked in turn about every request.
        requests: all that were made, as (method, bucket and object).
        log: all requests that it has answered, with the bytes served.
        ignores_conditions: whether it accepts a generation precondition but replaces the object,
            as the bare emulator does.
    """

    url: str
    faults: list[Fault] = dataclasses.field(default_factory=list)
    requests: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    log: RequestLog = dataclasses.field(default_factory=RequestLog)
    ignores_conditions: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs set to use this store and no credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "FSSPEC_GS": json.dumps({"token": "anon"}),
            "FSSPEC_GCS": json.dumps({"token": "anon"}),
            # Otherwise a remote call asks for the kind of the bucket.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, emulator_port: int) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.emulator_port = emulator_port
        self.store = CloudStorage(f"http://{LOOPBACK}:{self.server_address[1]}")
        self.lock = threading.Lock()
        self.created: set[str] = set()
        self.conditional_sessions: dict[str, str] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(LOOPBACK, self.server.emulator_port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name not in _MADE_UP}
        headers["Content-Length"] = str(len(request.body))
        try:
            upstream.request(self.command, self.path, body=request.body, headers=headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.title() not in _MADE_UP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            # A client may leave once it has what it wants.
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps(
            {"error": {"code": status, "message": message, "errors": [{"message": message}]}}
        ).encode()
        self._answer(status, [("Content-Type", "application/json")], body)

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        request = Request(self.command, parts.path, query, self._body())
        self.server.store.requests.append((request.method, request.object_name))
        fault = next(
            (found for fault in self.server.store.faults if (found := fault(request)) is not None),
            None,
        )
        if fault is not None and fault != LOST:
            self._refuse(fault, f"injected {fault}")
            return
        status, headers, content = self._held(request)
        if request.kind is Kind.GET and status < 300:
            headers = [*headers, ("X-Goog-Generation", self._generation(request))]
        answer = status, headers, content
        if fault == LOST:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self._log(request, *answer)
        self._answer(*answer)

    def _generation(self, request: Request) -> str:
        """Returns the generation of an object, which the store sends with its content."""
        bucket, _, name = request.object_name.partition("/")
        upstream = http.client.HTTPConnection(LOOPBACK, self.server.emulator_port, timeout=60)
        try:
            upstream.request("GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")
            return str(json.loads(upstream.getresponse().read())["generation"])
        finally:
            upstream.close()

    def _log(self, request: Request, status: int, _: list[tuple[str, str]], body: bytes) -> None:
        name = request.object_name
        if request.kind is Kind.LIST:
            name += request.query.get("prefix", "")
        size = len(body) if request.kind is Kind.GET and status < 300 else 0
        self.server.store.log.add(Served(request.kind, name, status, size))

    def _held(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
        """Carries a request out, its precondition held."""
        server = self.server
        conditional = (
            request.query.get("ifGenerationMatch") == "0" and not server.store.ignores_conditions
        )
        session = request.query.get("upload_id", "")
        if request.is_upload and request.query.get("uploadType") == "resumable" and not session:
            answer = self._forward(request)
            location = dict(answer[1]).get("Location", "")
            if conditional and "upload_id=" in location:
                server.conditional_sessions[parse_qs(urlsplit(location).query)["upload_id"][0]] = (
                    request.object_name
                )
            return answer
        name = server.conditional_sessions.get(session) if session else request.object_name
        if not (conditional and request.is_upload) and not (session and name):
            answer = self._forward(request)
            if request.is_upload and answer[0] < 300:
                server.created.add(request.object_name)
            elif request.method == "DELETE" and answer[0] < 300:
                server.created.discard(request.object_name)
            return answer
        assert name is not None
        with server.lock:
            if name in server.created:
                body = json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}).encode()
                return 412, [("Content-Type", "application/json")], body
            answer = self._forward(request)
            if answer[0] in (200, 201):
                server.created.add(name)
            return answer

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle


@contextlib.contextmanager
def cloud_storage(*buckets: str) -> Iterator[CloudStorage]:
    """Runs a store with empty buckets while its block runs."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    emulator = create_server(LOOPBACK, port, in_memory=True)
    emulator.start()
    proxy = _Proxy(port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        for bucket in buckets:
            connection = http.client.HTTPConnection(LOOPBACK, port)
            body = json.dumps({"name": bucket})
            connection.request("POST", "/storage/v1/b", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
            connection.close()
        yield proxy.store
    finally:
        proxy.shutdown()
        proxy.server_close()
        emulator.stop()


@contextlib.contextmanager
def used_here(store: CloudStorage) -> Iterator[None]:
    """Makes gs:// of this process mean the store while its block runs."""
    from fsspec.config import conf
    from gcsfs import GCSFileSystem

    before = {name: os.environ.get(name) for name in store.environment}
    os.environ.update(store.environment)
    conf["gs"] = conf["gcs"] = {"token": "anon", "endpoint_url": store.url}
    GCSFileSystem.clear_instance_cache()
    try:
        yield
    finally:
        del conf["gs"], conf["gcs"]
        GCSFileSystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
