"""A Hub on this machine: the part of its interface by which huggingface_hub makes, fills and reads repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_nobody"


class Repository:
    def __init__(self, private: bool) -> None:
        self.private, self.commits, self.revisions = private, {}, {}
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha], self.revisions["main"] = files, sha
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.revisions["main"]]


class Hub:
    """Repositories by name, and every request that came: its method, its path, whether with the right token."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, bool]] = []
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: object, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self._answer({"error": code}, status, X_Error_Code=code)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = b""
        while size := int(self.rfile.readline(), 16):
            chunks += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return chunks

    def _handle(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.hub.requests.append((self.command, path, known))
        if path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.command == "POST" and not known:
            self._refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/([^/]+))?", path):
            self._ask(match[1], match[2] or "revision", match[3] or "main", body, known)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._ask(match[1], "resolve", match[2], match[3].encode(), known)
        else:
            self._refuse(404, "RepoNotFound")

    do_GET = do_HEAD = do_POST = _handle  # noqa: N815

    def _create(self, wanted: dict) -> None:
        name = f"{wanted.get('organization') or 'you'}/{wanted['name']}"
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        if name in self.hub.repositories:
            self._answer({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
            return
        self.hub.repositories[name] = Repository(private)
        self._answer({"url": f"{self.hub.url}/{name}", "name": name})

    def _ask(self, name: str, part: str, revision: str, body: bytes, known: bool) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not known):
            self._refuse(404 if known else 401, "RepoNotFound")
            return
        sha = repository.revisions.get(revision, revision)
        if sha not in repository.commits:
            self._refuse(404, "RevisionNotFound")
            return
        getattr(self, f"_{part}")(name, repository, sha, body)

    def _revision(self, name: str, repository: Repository, sha: str, _: bytes) -> None:
        siblings = [{"rfilename": file} for file in repository.commits[sha]]
        info = {"_id": "1", "id": name, "modelId": name, "sha": sha, "private": repository.private, "tags": []}
        self._answer(info | {"downloads": 0, "likes": 0, "siblings": siblings})

    def _tree(self, name: str, repository: Repository, sha: str, _: bytes) -> None:
        files = repository.commits[sha].items()
        self._answer([{"type": "file", "path": file, "size": len(data), "oid": _oid(data)} for file, data in files])

    def _resolve(self, name: str, repository: Repository, sha: str, file: bytes) -> None:
        if file.decode() not in repository.commits[sha]:
            self._answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        data = repository.commits[sha][file.decode()]
        self._answer(data, ETag=f'"{_oid(data)}"', X_Repo_Commit=sha, Accept_Ranges="none")

    def _preupload(self, name: str, repository: Repository, sha: str, body: bytes) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})

    def _commit(self, name: str, repository: Repository, sha: str, body: bytes) -> None:
        files = dict(repository.files)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        oid = repository.commit(files)
        self._answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
