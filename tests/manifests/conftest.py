"""A copy of the manifests with sample values instead of the files that git ignores, and kubectl."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from pods import KUBECTL, copy


@pytest.fixture(scope="session")
def kubectl():
    def kubectl(*arguments, **settings):
        done = subprocess.run([KUBECTL, *map(str, arguments)], text=True, capture_output=True, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return kubectl


@pytest.fixture(scope="session")
def manifests(tmp_path_factory):
    return copy(tmp_path_factory.mktemp("manifests") / "manifests")


@pytest.fixture(scope="session")
def render(manifests, kubectl):
    """The objects of an overlay, or of another folder with a kustomization."""
    return lambda folder: list(yaml.safe_load_all(kubectl("kustomize", manifests / folder)))


@pytest.fixture
def render_with(tmp_path, kubectl):
    """The objects of the overlay `local`, with other values of secrets."""
    return lambda changed: list(
        yaml.safe_load_all(kubectl("kustomize", copy(tmp_path / "changed", changed) / "overlays" / "local"))
    )


@pytest.fixture(scope="session")
def discovery(tmp_path_factory):
    """Options for kubectl, which asks a cluster for its kinds of objects even if it sends none.

    They lead to a server without objects that serves the discovery documents of Kubernetes 1.37.2 for the kinds used
    here (the files of `api/discovery` in its source).
    """
    documents = json.loads(Path(__file__).with_name("discovery.json").read_text(encoding="utf-8"))
    nothing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no object is here", "code": 404}
    nothing["reason"] = "NotFound"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            self.send_response(200 if path in documents else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(documents.get(path, nothing)).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield [f"--server=http://127.0.0.1:{server.server_port}", f"--cache-dir={tmp_path_factory.mktemp('cache')}"]
        server.shutdown()
