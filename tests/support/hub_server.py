"""A server on this machine that answers as the Hugging Face Hub does, for one repository."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Prints no requests."""

    def do_POST(self) -> None:
        """Creates the repository, takes commits, and describes files."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here = f"{self.server.url}/{self.server.repository}"
        if self.path.startswith("/api/repos/create"):
            self.answer({"url": here, "name": self.server.repository})
        elif self.path.startswith("/api/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
                elif line["key"] == "deletedFile":
                    del self.server.files[line["value"]["path"]]
            self.server.commits += 1
            self.answer({"commitUrl": f"{here}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        """Serves the repository's description, its files' names and their contents."""
        path = self.path.partition("?")[0]
        files = self.server.files
        if "/resolve/" in path:
            name = path.split("/resolve/")[1].partition("/")[2]
            if name in files:
                self.answer(files[name])
            else:
                self.send_error(404)
        elif "/tree/" in path:
            self.answer(
                [
                    {"type": "file", "oid": "0", "size": len(content), "path": name}
                    for name, content in files.items()
                ]
            )
        else:
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": self.server.repository, "sha": COMMIT, "siblings": siblings})

    def answer(self, content: Any) -> None:
        """Sends bytes, or anything else as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        self.wfile.write(body)


class HubServer(ThreadingHTTPServer):
    """The server.

    Args:
        repository: Repository, as ORG/NAME.

    Attributes:
        files: Contents of the repository by path.
        commits: Number of commits.
    """

    def __init__(self, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.files: dict[str, bytes] = {}
        self.commits = 0

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that make the client use the server."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextlib.contextmanager
def hub_server(repository: str) -> Iterator[HubServer]:
    """Runs a server while the block runs."""
    with HubServer(repository) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
