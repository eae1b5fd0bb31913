"""A small hub on this machine: what `huggingface_hub` asks of the real one, models in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository: its branches, each with the files of its commits, the last one last."""

    private: bool = False
    gated: bool = False
    branches: dict[str, list[Files]] = field(default_factory=lambda: {"main": [{}]})

    def at(self, revision: str) -> Files | None:
        """Return the files at a branch or a commit."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (files for branch in self.branches.values() for files in branch)
        return next((files for files in commits if commit_id(files) == revision), None)


@dataclass
class Hub:
    """The state of the hub, for tests to set and to look at."""

    address: str
    token: str = "hf_secret"
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


def commit_id(files: Files) -> str:
    digest = hashlib.sha1()
    for name, data in sorted(files.items()):
        digest.update(name.encode() + data)
    return digest.hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", url: str = "") -> None:
        self.status, self.code, self.url = status, code, url


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        known = self.headers.get("Authorization") == f"Bearer {hub.token}"
        headers: dict[str, str] = {}
        try:
            if "/resolve/" in path:
                data, headers = self._file(hub, path, known)
            else:
                data = json.dumps(self._api(hub, path, body, known)).encode()
            status = 200
        except _RefusedError as refused:
            status, data = refused.status, json.dumps({"url": refused.url}).encode()
            headers = {"X-Error-Code": refused.code} if refused.code else {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _file(self, hub: Hub, path: str, known: bool) -> tuple[bytes, dict[str, str]]:
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        if _repository(hub, name, known).gated and not known:
            raise _RefusedError(403, "GatedRepo")
        files = _files(hub, name, revision, known)
        if file not in files:
            raise _RefusedError(404, "EntryNotFound")
        etag = hashlib.sha1(files[file]).hexdigest()
        return files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": commit_id(files)}

    def _api(self, hub: Hub, path: str, body: bytes, known: bool) -> Any:
        if path == "/api/validate-yaml":
            return {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if not known:
                raise _RefusedError(401)
            if name in hub.repositories:
                raise _RefusedError(409, url=f"{hub.address}/{name}")
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.repositories[name] = Repository(private=bool(private))
            return {"url": f"{hub.address}/{name}"}
        owner, model, *rest = path.removeprefix("/api/models/").split("/")
        name, what = f"{owner}/{model}", rest[0] if rest else "revision"
        revision = "/".join(rest[1:]) or "main"
        repository = _repository(hub, name, known)
        if self.command == "POST" and not known:
            raise _RefusedError(403)
        if what == "branch":
            if revision in repository.branches:
                raise _RefusedError(409)
            repository.branches[revision] = [repository.branches["main"][-1]]
            return {}
        files = _files(hub, name, revision, known)
        if what == "revision":
            return {
                "id": name,
                "sha": commit_id(files),
                "private": repository.private,
                "siblings": [{"rfilename": file} for file in files],
            }
        if what == "tree":
            return [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                for file, data in files.items()
            ]
        if what == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": f["path"], **modes} for f in json.loads(body)["files"]]}
        assert what == "commit", path
        changed = dict(files)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                changed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del changed[line["value"]["path"]]
        repository.branches[revision].append(changed)
        oid = commit_id(changed)
        return {"commitUrl": f"{hub.address}/{name}/commit/{oid}", "commitOid": oid}


def _repository(hub: Hub, name: str, known: bool) -> Repository:
    repository = hub.repositories.get(name)
    if repository is None or (repository.private and not known):
        raise _RefusedError(404, "RepoNotFound")
    return repository


def _files(hub: Hub, name: str, revision: str, known: bool) -> Files:
    files = _repository(hub, name, known).at(revision)
    if files is None:
        raise _RefusedError(404, "RevisionNotFound")
    return files
