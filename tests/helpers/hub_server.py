"""The Hub's HTTP interface on the loopback, as far as a bundle needs it, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ".safetensors"  # the Hub keeps these out of git and serves them from another host


@dataclass
class Repo:
    """A repository: its commits (files by commit), its branches, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], *, ref="main", parent=None):
        base = self.commits[self.refs[parent]] if parent in self.refs else {}
        tree = {**base, **files}
        sha = hashlib.sha1(repr((len(self.commits), sorted(tree.items()))).encode()).hexdigest()
        self.commits[sha] = tree
        self.refs[ref] = sha
        return sha

    def find(self, revision):
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server. ``requests`` counts what was asked; the other attributes are faults to inject."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        # To the client another host: it must not send its token there.
        self.content_host = f"http://localhost:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.tokens = {"hf_good"}
        self.cards: list[str] = []
        self.cuts = 0  # how many transfers of contents end half-way
        self.status: dict[str, int] = {}  # from a word in the path to the status it gets
        self.leaked = False  # whether a token reached the content host

    def add(self, name, files, **options):
        repo = self.repos.setdefault(name, Repo(**options))
        for data in files.values():
            self.storage[hashlib.sha256(data).hexdigest()] = data
        return repo.commit(files)

    def handle_error(self, request, client_address):
        """Stay quiet where the client hangs up; a fault of ours shows as the client's error."""

    def asked(self, word):
        return sum(count for key, count in self.requests.items() if word in key)


class Handler(BaseHTTPRequestHandler):
    """One method a route; a route that is missing answers 404 and fails the test."""

    protocol_version = "HTTP/1.1"
    server: Hub

    ROUTES = (
        ("GET", r"/api/models/(.+/.+)/revision/(.+)", "info"),
        ("GET", r"/api/models/(.+/.+)/tree/(.+)", "tree"),
        ("GET|HEAD", r"/(.+/.+)/resolve/([^/]+)/(.+)", "resolve"),
        ("GET|HEAD", r"/content/(\w+)", "content"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/models/(.+/.+)/branch/(.+)", "branch"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(.+/.+)/preupload/(.+)", "preupload"),
        ("POST", r"/(.+/.+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/content/(\w+)", "store"),
        ("POST", r"/verify", "verify"),
        ("POST", r"/api/models/(.+/.+)/commit/(.+)", "commit"),
    )

    def log_message(self, format, *args):
        pass

    def answer(self, status=200, body=b"", *, error=None, message=None, **headers):
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        if message or error:
            self.send_header("X-Error-Message", message or error)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(url.path)
        self.server.requests[f"{self.command} {path}"] += 1
        for word, status in self.server.status.items():
            if word in path:
                return self.answer(status)
        for methods, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split("|"):
                return getattr(self, name)(*match.groups())
        return self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = route

    def authorized(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            self.answer(401, message="Invalid credentials in Authorization header")
            return None
        return bool(token)

    def readable(self, name):
        """Return the repository, or answer as the Hub does and return None."""
        token = self.authorized()
        if token is None:
            return None
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not token):
            self.answer(404 if token else 401, error="RepoNotFound")
            return None
        if repo.gated and "resolve" in self.path:
            self.answer(403, error="GatedRepo")
            return None
        return repo

    def revision(self, name, revision):
        repo = self.readable(name)
        if repo is None:
            return None, None
        sha = repo.find(revision)
        if sha is None:
            self.answer(404, error="RevisionNotFound")
        return repo, sha

    def info(self, name, revision):
        repo, sha = self.revision(name, revision)
        if sha:
            files = [{"rfilename": p, "size": len(d)} for p, d in repo.commits[sha].items()]
            self.answer(body={"id": name, "sha": sha, "private": repo.private, "siblings": files})

    def tree(self, name, revision):
        repo, sha = self.revision(name, revision)
        if sha:
            self.answer(body=[_tree_entry(*item) for item in repo.commits[sha].items()])

    def resolve(self, name, revision, path):
        repo, sha = self.revision(name, revision)
        if not sha:
            return
        if path not in repo.commits[sha]:
            self.answer(404, error="EntryNotFound", X_Repo_Commit=sha)
            return
        data = repo.commits[sha][path]
        digest = hashlib.sha256(data).hexdigest()
        if path.endswith(LARGE):
            self.answer(
                302,
                X_Repo_Commit=sha,
                X_Linked_Etag=f'"{digest}"',
                X_Linked_Size=str(len(data)),
                Location=f"{self.server.content_host}/content/{digest}",
            )
        else:
            self.answer(body=data, X_Repo_Commit=sha, ETag=f'"{_git_hash(data)}"')

    def content(self, digest):
        self.server.leaked |= "Authorization" in self.headers
        data = self.server.storage[digest]
        first = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(match[1])
        body = data[first:]
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts > 0:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def create(self):
        request = json.loads(self.body)
        token = self.authorized()
        if not token:
            if token is False:
                self.answer(401, message="Sign in to create a repository")
            return
        name = f"{request['organization']}/{request['name']}"
        if name in self.server.repos:
            self.answer(409, {"url": f"{self.server.endpoint}/{name}"})
            return
        repo = Repo(private=request.get("visibility") == "private" or bool(request.get("private")))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.repos[name] = repo
        self.answer(body={"url": f"{self.server.endpoint}/{name}"})

    def branch(self, name, branch):
        repo = self.server.repos[name]
        if branch in repo.refs:
            self.answer(409)
            return
        repo.refs[branch] = repo.refs["main"]
        self.answer()

    def validate(self):
        self.server.cards.append(json.loads(self.body)["content"])
        self.answer(body={"warnings": [], "errors": []})

    def preupload(self, name, revision):
        if self.revision(name, revision)[1]:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(self.body)["files"]
            ]
            self.answer(body={"files": files})

    def batch(self, name):
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.endpoint}/content/{item['oid']}"}
            verify = {"href": f"{self.server.endpoint}/verify"}
            objects.append(item | {"actions": {"upload": upload, "verify": verify}})
        self.answer(body={"transfer": "basic", "objects": objects})

    def store(self, digest):
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.server.storage[digest] = self.body
        self.answer()

    def verify(self):
        request = json.loads(self.body)
        assert len(self.server.storage[request["oid"]]) == request["size"]
        self.answer(body={})

    def commit(self, name, revision):
        repo, sha = self.revision(name, revision)
        if not sha:
            return
        files = {}
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.storage[value["oid"]]
        pull = "create_pr" in self.query
        ref = f"refs/pr/{len(repo.refs)}" if pull else revision
        oid = repo.commit(files, ref=ref, parent=revision)
        url = f"{self.server.endpoint}/{name}"
        answer = {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid}
        if pull:
            answer["pullRequestUrl"] = f"{url}/discussions/{ref.rpartition('/')[2]}"
        self.answer(body=answer)


def _git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree_entry(path, data):
    entry = {"type": "file", "path": path, "size": len(data), "oid": _git_hash(data)}
    if path.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def serve():
    """Run a Hub in a thread."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
