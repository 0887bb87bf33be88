"""S3 on loopback: a server that honors If-None-Match, and counts requests and bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

import fsspec
import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from tests.support.request_log import Kind, RequestLog, Served

LOOPBACK = "127.0.0.1"


@dataclasses.dataclass
class S3Storage:
    """A running store.

    Attributes:
        url: Endpoint.
        log: All requests that it has answered.
        ignores_conditions: Whether it accepts a create-if-absent but replaces the object, as stores
            do that do not know the header.
    """

    url: str
    log: RequestLog = dataclasses.field(default_factory=RequestLog)
    ignores_conditions: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """The variables of AWS's tools with which a process uses this store."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def _kind(environ: dict[str, Any], key: str) -> Kind:
    method = environ["REQUEST_METHOD"]
    if method == "GET":
        return Kind.GET if key else Kind.LIST
    if method in ("HEAD", "DELETE"):
        return Kind(method.lower())
    return Kind.CREATE if "HTTP_IF_NONE_MATCH" in environ else Kind.PUT


def _counted(application: Callable[..., Iterable[bytes]], store: S3Storage) -> Callable[..., Any]:
    """Returns a WSGI application that answers as another one and logs each answer."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        kind = _kind(environ, key)
        if store.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)

        status = 0

        def start(line: str, *more: Any) -> Any:
            nonlocal status
            status = int(line.split()[0])
            return start_response(line, *more)

        parts = list(application(environ, start))
        is_content = kind is Kind.GET and status < 300
        size = sum(map(len, parts)) if is_content else 0
        if kind is Kind.LIST:
            key = parse_qs(environ["QUERY_STRING"]).get("prefix", [""])[0]
        store.log.add(Served(kind, f"{bucket}/{key}", status, size))
        return parts

    return answer


class _Handler(MotoRequestHandler):
    def log(self, *_: Any) -> None:
        """Logs nothing."""


@contextlib.contextmanager
def s3_storage(*buckets: str) -> Iterator[S3Storage]:
    """Runs a store with empty buckets; s3:// of this process means it while the block runs."""
    store = S3Storage("")
    application = _counted(DomainDispatcherApplication(create_backend_app), store)
    server = make_server(LOOPBACK, 0, application, True, request_handler=_Handler)
    store.url = f"http://{LOOPBACK}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    kind = fsspec.get_filesystem_class("s3")
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in store.environment.items():
                patch.setenv(name, value)
            patch.delenv("AWS_PROFILE", raising=False)
            kind.clear_instance_cache()
            for bucket in buckets:
                fsspec.filesystem("s3").mkdir(bucket)
            yield store
    finally:
        kind.clear_instance_cache()
        # The backend's state belongs to the process and would outlast the server.
        urllib.request.urlopen(f"{store.url}/moto-api/reset", data=b"").close()
        server.shutdown()
        thread.join()
        server.server_close()
