"""A Hugging Face Hub on the loopback interface, for the real clients: repositories, commits, large files, faults."""

import base64
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import utils

from ld3m.machine.hub import out_of_reach

WRITE_TOKEN, READ_TOKEN = "hf_writes0123456789", "hf_reads0123456789"
USER = "me"
LARGE = (".parquet", ".safetensors", ".png", ".gif", ".bin", ".arrow")
"""What a repository's .gitattributes sends to the store of large files."""


@dataclass
class Repository:
    """Its branches, each a list of commits, each of which is all files of the repository at that time."""

    private: bool = False
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{}]})

    def commits(self, revision: str) -> list[dict[str, bytes]] | None:
        """Up to a branch's head, or to a commit by its name."""
        if revision in self.branches:
            return self.branches[revision]
        for commits in self.branches.values():
            for number in range(len(commits)):
                if sha(commits[: number + 1]) == revision:
                    return commits[: number + 1]
        return None


@dataclass
class Fault:
    """What happens to the next `times` requests that match: a status, a cut connection, or a late answer."""

    request: str
    """A regular expression of "METHOD /path"."""
    status: int = 0
    times: int = 1
    cut: bool = False
    seconds: float = 0
    headers: Mapping[str, str] = field(default_factory=dict)


class Reply(NamedTuple):
    """Bytes, or what becomes JSON."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name, such as ("dataset", "me/garments"), and what was asked of them."""

    daemon_threads = True

    def __init__(self) -> None:
        self.url = os.environ["HF_ENDPOINT"]
        super().__init__(("127.0.0.1", int(self.url.rpartition(":")[2])), Answers)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.store: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.pull_requests = 0
        self.lock = Lock()

    def files(self, name: str, kind: str = "dataset", revision: str = "main") -> dict[str, bytes]:
        """What a branch holds now."""
        return self.repositories[kind, name].branches[revision][-1]

    def asked(self, pattern: str) -> list[str]:
        """The requests so far that match."""
        return [request for request in self.requests if re.search(pattern, request)]


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub for the length of a test."""
    hub = Hub()
    Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    out_of_reach.cache_clear()
    getattr(utils, "reset_sessions", lambda: None)()  # of older clients, of which a test may have left one offline
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        out_of_reach.cache_clear()


def sha(commits: list[dict[str, bytes]]) -> str:
    """The name of the last of some commits: it tells what all files are and how many commits came before."""
    told = hashlib.sha1(str(len(commits)).encode())
    for path, content in sorted(commits[-1].items()):
        told.update(path.encode() + hashlib.sha1(content).digest())
    return told.hexdigest()


def oid(path: str, content: bytes) -> str:
    """How the Hub tells contents apart: by SHA-256 those of the large files, by git's blob those of others."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answers(BaseHTTPRequestHandler):
    """A connection a request: none outlives its server, which another test's may follow on the same port."""

    server: Hub

    def do_HEAD(self) -> None:
        self.handle_request()

    def do_GET(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def do_PUT(self) -> None:
        self.handle_request()

    def log_message(self, *_: object) -> None:
        pass

    def handle_request(self) -> None:
        self.path = unquote(self.path)
        asked = f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.server.requests.append(asked)
            fault = next((f for f in self.server.faults if f.times and re.search(f.request, asked)), None)
            if fault:
                fault.times -= 1
        if fault:
            time.sleep(fault.seconds)
            if fault.cut:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
        with self.server.lock:
            if fault and fault.status:
                reply = Reply({"error": f"status {fault.status}, by request"}, fault.status, fault.headers)
            else:
                reply = self.answer(urlsplit(self.path).path, body)
        self.send(reply)

    def answer(self, path: str, body: bytes) -> Reply:
        user = {WRITE_TOKEN: "write", READ_TOKEN: "read"}.get(
            self.headers.get("Authorization", "").removeprefix("Bearer ")
        )
        if path == "/api/whoami-v2":
            known = {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": user}}}
            return Reply(known) if user else Reply({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if found := re.fullmatch(r"/large/(\w+)", path):
            self.server.store[found[1]] = body
            return Reply({})
        if self.command in ("POST", "PUT") and "paths-info" not in path and user != "write":
            words = "You don't have the rights to create or change this." if user else "Please log in."
            return Reply({"error": words}, 403 if user else 401)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(.+)", path):
            kind = "dataset" if found[1] else "model"
            return self.within(kind, found[2], "resolve", found[3], body)
        if found := re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+)(?:/([^/]+)(?:/(.*))?)?", path):
            return self.within(found[1], found[2], found[3] or "revision", found[4] or "main", body)
        return Reply({"error": f"nothing is at {path}"}, 404)

    # --- what is not of a repository --------------------------------------------------------------------------

    def validate(self, content: str) -> Reply:
        """Refuses what the Hub's own check refuses of the keys that cards of data sets have."""
        meta = yaml.safe_load(content.split("---")[1])
        wrong = []
        licences = meta.get("license") or []
        for licence in [licences] if isinstance(licences, str) else licences:
            if licence not in ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "openrail", "other", "unknown"):
                wrong.append(f'"license" must be one of the known ids, not {licence}')
        if licences == "other" and "license_name" not in meta:
            wrong.append('"license_name" is required when license is "other"')
        for size in meta.get("size_categories", []):
            if not re.fullmatch(r"n<1K|1K<n<10K|10K<n<100K|100K<n<1M", size):
                wrong.append(f'"size_categories" has {size}')
        for task in meta.get("task_categories", []):
            if task not in ("image-classification", "unconditional-image-generation"):
                wrong.append(f'"task_categories" has {task}')
        for entry in meta.get("configs", []):
            if not re.fullmatch(r"[^<>:/\\|?*]+", entry["config_name"]) or not entry["data_files"]:
                wrong.append('"configs" is not right')
        return Reply({"errors": [{"message": each} for each in wrong], "warnings": []}, 400 if wrong else 200)

    def create(self, asked: dict[str, Any]) -> Reply:
        owner, kind = asked.get("organization") or USER, asked.get("type", "model")
        name = f"{owner}/{asked['name']}"
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if owner != USER:
            return Reply({"error": "You don't have the rights to create a repository under this namespace"}, 403)
        if (kind, name) in self.server.repositories:
            return Reply({"error": "You already created this repo", "url": url}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repositories[kind, name] = Repository(private)
        return Reply({"url": url, "name": name, "id": name})

    def batch(self, asked: dict[str, Any]) -> Reply:
        objects: list[dict[str, Any]] = []
        for each in asked["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}
            objects.append(each if each["oid"] in self.server.store else {**each, "actions": upload})
        return Reply({"transfer": "basic", "objects": objects})

    # --- repositories -----------------------------------------------------------------------------------------

    def within(self, kind: str, name: str, what: str, rest: str, body: bytes) -> Reply:
        repository = self.server.repositories.get((kind, name))
        if repository is None:
            return Reply({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if what == "branch":
            if rest in repository.branches:
                return Reply({"error": "Reference already exists"}, 409)
            repository.branches[rest] = list(repository.branches["main"])
            return Reply({})
        revision, _, inner = rest.partition("/")
        if revision == "refs":  # refs/pr/1, refs/convert/parquet
            *words, inner = (*rest.split("/", 3), "")[:4]
            revision = "/".join(words)
        commits = repository.commits(revision)
        if commits is None:
            return Reply({"error": f"Invalid rev id: {revision}"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = commits[-1]
        if what == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            meta = {}
            if "README.md" in files and (parts := files["README.md"].decode().split("---\n")) and len(parts) > 2:
                meta = yaml.safe_load(parts[1])
            return Reply(
                {
                    "id": name,
                    "sha": sha(commits),
                    "private": repository.private,
                    "siblings": siblings,
                    "cardData": meta,
                    "tags": meta.get("tags", []),
                    "downloads": 0,
                }
            )
        if what == "tree":
            return self.tree(files, inner, "recursive=true" in self.path.lower())
        if what == "paths-info":
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
            return Reply([entry(path, files[path]) for path in wanted if path in files])
        if what == "preupload":
            asked = json.loads(body)["files"]
            return Reply(
                {
                    "files": [
                        {
                            "path": each["path"],
                            "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                            "shouldIgnore": False,
                            "oid": oid(each["path"], files[each["path"]]) if each["path"] in files else None,
                        }
                        for each in asked
                    ]
                }
            )
        if what == "commit":
            return self.commit(repository, name, revision, body)
        if what == "resolve":
            return self.resolve(files, inner, sha(commits))
        return Reply({"error": f"no {what} here"}, 404)

    def tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> Reply:
        prefix = f"{folder}/" if folder else ""
        below = {path: content for path, content in files.items() if path.startswith(prefix)}
        if folder and not below:
            return Reply({"error": f"{folder} does not exist"}, 404, {"X-Error-Code": "EntryNotFound"})
        folders = set()
        for path in below:
            parts = path[len(prefix) :].split("/")[:-1]
            depth = len(parts) if recursive else min(1, len(parts))
            folders |= {prefix + "/".join(parts[: n + 1]) for n in range(depth)}
        shown = [entry(path, files[path]) for path in below if recursive or "/" not in path[len(prefix) :]]
        return Reply(
            [*({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)), *shown]
        )

    def commit(self, repository: Repository, name: str, revision: str, body: bytes) -> Reply:
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(repository.branches[revision][-1])
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.store[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case "deletedFolder":
                    files = {path: held for path, held in files.items() if not path.startswith(value["path"])}
        answer: dict[str, Any] = {"commitUrl": f"{self.server.url}/datasets/{name}/commit/0", "commitOid": "0" * 40}
        if "create_pr=1" in self.path:
            self.server.pull_requests += 1
            revision = f"refs/pr/{self.server.pull_requests}"
            repository.branches[revision] = list(repository.branches["main"])
            answer["pullRequestUrl"] = f"{self.server.url}/datasets/{name}/discussions/{self.server.pull_requests}"
        repository.branches[revision] = [*repository.branches[revision], files]
        answer["commitOid"] = sha(repository.branches[revision])
        answer["commitUrl"] = f"{self.server.url}/datasets/{name}/commit/{answer['commitOid']}"
        return Reply(answer)

    def resolve(self, files: dict[str, bytes], path: str, commit: str) -> Reply:
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path not in files:
            return Reply({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
        content = files[path]
        headers["ETag"] = f'"{oid(path, content)}"'
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), int(found[2]) if found[2] else len(content) - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return Reply(content[start : end + 1], 206, headers)
        return Reply(content, 200, headers)

    def send(self, reply: Reply) -> None:
        plain = isinstance(reply.body, bytes)
        body = reply.body if plain else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/octet-stream" if plain else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as a listing has it."""
    told: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid(path, content)[:40]}
    if path.endswith(LARGE):
        told["lfs"] = {"oid": oid(path, content), "size": len(content), "pointerSize": 134}
    return told
