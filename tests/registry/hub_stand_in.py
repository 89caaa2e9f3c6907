"""A stand-in of the Hub on 127.0.0.1: just enough of its API for the official client to list and download."""

import hashlib
import json
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One repository; a revision that `revisions` does not name is its commit or unknown."""

    files: dict[str, bytes]
    gated: bool = False
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """Returns the commit hash of a branch, a tag or itself."""
        commits = {name: _commit(files) for name, files in {"main": self.files, **self.revisions}.items()}
        return commits.get(revision, revision if revision in commits.values() else None)

    def at(self, commit: str) -> dict[str, bytes]:
        """Returns the files of a commit."""
        return next(files for files in (self.files, *self.revisions.values()) if _commit(files) == commit)


@dataclass
class HubStandIn:
    """What is on the Hub, what the client has asked for, and what is wrong.

    Attributes:
        outage: nothing is answered but that there is one.
        gate: a page that a network answers in place of the Hub, to whoever has not logged in.
        gated: which requests get it: all, those of files, or those of the API.
        cut: after so many bytes of a file the connection ends.
        understated: a file's size that is told before it is sent is too small.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    outage: bool = False
    gate: bytes | None = None
    gated: str = "all"
    cut: int | None = None
    understated: bool = False

    def downloads(self) -> list[str]:
        """Returns the names of the files that were sent."""
        marker = "/resolve/"
        found = [line.split(marker)[1] for line in self.requests if line.startswith("GET") and marker in line]
        return sorted(name.partition("/")[2] for name in found)

    def asked(self) -> set[str]:
        """Returns the names of the files that were asked about or sent."""
        return {line.split("/resolve/")[1].partition("/")[2] for line in self.requests if "/resolve/" in line}

    def client_environment(self, cache: Path) -> dict[str, str]:
        """Returns an environment in which the client asks this stand-in and keeps its files in `cache`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_HOME": str(cache),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def serving():
    """Runs a stand-in in a thread."""
    hub = HubStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _commit(files):
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def log_message(self, *_):
            pass

        def answer(self):
            path = urlsplit(self.path).path
            hub.requests.append(f"{self.command} {unquote(path)}")
            parts = [unquote(part) for part in path.strip("/").split("/")]
            is_api = parts[:2] == ["api", "models"]
            org, name, *rest = parts[2:] if is_api else parts
            repository = hub.repositories.get(f"{org}/{name}")
            if hub.gate is not None and hub.gated in ("all", "api" if is_api else "files"):
                return self.reply(200, {"Content-Type": "text/html"}, hub.gate)
            if hub.outage:
                return self.refuse(503, "", "Service unavailable")
            if repository is None:
                return self.refuse(401, "RepoNotFound", "Repository not found")
            kind, revision, *file = [*rest, "revision", "main"][:2] + rest[2:]
            commit = repository.commit(revision)
            if commit is None:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if is_api:
                return self.describe(f"{org}/{name}", kind, commit, repository.at(commit))
            if repository.gated:
                return self.refuse(403, "GatedRepo", "Access to this model is restricted")
            return self.send_file(commit, repository.at(commit).get("/".join(file)))

        def describe(self, repo_id, kind, commit, files):
            if kind == "tree":
                answer = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
            else:
                siblings = [{"rfilename": path} for path in files]
                answer = {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings}
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

        def send_file(self, commit, data):
            if data is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            etag = hashlib.sha1(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
            if hub.understated and self.command == "HEAD":
                return self.reply(200, headers, data[1:])
            return self.reply(200, headers, data, hub.cut)

        def refuse(self, status, code, message):
            self.reply(status, {"X-Error-Code": code, "X-Error-Message": message}, b"")

        def reply(self, status, headers, body, cut=None):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    return Handler
