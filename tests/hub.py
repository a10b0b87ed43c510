"""A hub on this machine: serves folders by the protocol of the Hugging Face Hub's own client.

Repositories with revisions, and gated ones that ask for a token. Enough for `snapshot_download`.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """What is served, and what was asked for.

    Attributes:
        repositories: "org/name" → revision → folder; "main" is there always.
        tokens: "org/name" → the token that opens it; others are open.
        downloads: Path of each file that was given, in order.
    """

    def __init__(
        self, repositories: Mapping[str, Mapping[str, Path]], tokens: Mapping[str, str]
    ) -> None:
        self.repositories = repositories
        self.tokens = tokens
        self.downloads: list[str] = []
        self.url = ""

    def environment(self, cache: Path) -> dict[str, str]:
        """Return what a worker needs to be sent here and nowhere else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextlib.contextmanager
def hub(repositories: Mapping[str, Mapping[str, Path]], tokens: Mapping[str, str]) -> Iterator[Hub]:
    """Serve repositories on a port of this machine."""
    served = Hub(repositories, tokens)
    handler = type("Handler", (_Handler,), {"hub": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def commit_of(repository: str, revision: str) -> str:
    """Return the commit that a revision stands for."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()  # noqa: S324  # a name


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the base class calls it so
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)
            return
        token = self.hub.tokens.get(name)
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"{name} is gated"}
            self._send(401, b"{}", headers, with_body=with_body)
            return
        revision = self._revision(name, rest[1] if len(rest) > 1 else "main")
        if revision is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
        elif api:
            self._send(200, self._described(name, revision, rest), {}, with_body=with_body)
        else:
            self._file(name, revision, "/".join(rest[2:]), with_body=with_body)

    def _revision(self, name: str, asked: str) -> str | None:
        for revision in self.hub.repositories[name]:
            if asked in (revision, commit_of(name, revision)):
                return revision
        return None

    def _described(self, name: str, revision: str, rest: list[str]) -> bytes:
        folder = self.hub.repositories[name][revision]
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _etag(p)}
                for p in files
            ]
            return json.dumps(tree).encode()
        return json.dumps(
            {
                "id": name,
                "modelId": name,
                "sha": commit_of(name, revision),
                "private": False,
                "gated": name in self.hub.tokens,
                "tags": [],
                "downloads": 0,
                "siblings": [{"rfilename": path.name} for path in files],
            }
        ).encode()

    def _file(self, name: str, revision: str, file: str, *, with_body: bool) -> None:
        path = self.hub.repositories[name][revision] / file
        headers = {"X-Repo-Commit": commit_of(name, revision)}
        if not path.is_file():
            headers["X-Error-Code"] = "EntryNotFound"
            self._send(404, b"", headers, with_body=with_body)
            return
        if with_body:
            self.hub.downloads.append(f"{name}@{revision}/{file}")
        headers |= {"ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        self._send(200, path.read_bytes(), headers, with_body=with_body)

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], *, with_body: bool
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()  # noqa: S324  # a name
