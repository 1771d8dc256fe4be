"""What `--docker` refuses before any work, and the settings of containers; no engine is needed."""

import contextlib
import gc
import json
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingUnixStreamServer
from typing import ClassVar

import pytest
from click.testing import CliRunner

from evasion.components.step import IMAGE
from evasion.pipelines.cli import exit_codes, main
from evasion.pipelines.local import containers, server
from evasion.pipelines.plan import PlannedStep

# The docker library leaves a socket open that it could not connect.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def evasion(*arguments):
    return CliRunner().invoke(main.main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(make_folder, random_pixels):
    return make_folder({name: random_pixels(1, (28, 28, 1)) for name in ("cat", "dog")})


@pytest.fixture
def fgm(folder, tmp_path):
    def fgm(*options):
        return evasion(
            *("run", "fgm", "--docker", "--data-dir", folder, "--model", "m", "--model-architecture", "le_net"),
            *("--output", tmp_path / "runs", *options),
        )

    return fgm


class Empty(BaseHTTPRequestHandler):
    """An engine that holds nothing."""

    protocol_version = "HTTP/1.1"
    security: ClassVar = ["name=seccomp"]

    def do_GET(self):
        answers = {
            "version": (200, {"ApiVersion": "1.41", "Version": "20.10"}),
            "info": (200, {"SecurityOptions": self.security}),
        }
        status, answer = answers.get(self.path.rpartition("/")[2], (404, {"message": "No such image"}))
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class Rootless(Empty):
    security: ClassVar = ["name=seccomp", "name=rootless"]


@pytest.fixture
def serve(tmp_path, monkeypatch):
    with contextlib.ExitStack() as stack:

        def serve(handler):
            engine = stack.enter_context(ThreadingUnixStreamServer(str(tmp_path / "engine"), handler))
            engine.daemon_threads = True
            threading.Thread(target=engine.serve_forever, daemon=True).start()
            stack.callback(engine.shutdown)
            monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'engine'}")

        yield serve


@pytest.fixture
def no_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'nothing'}")
    yield
    gc.collect()


def test_without_an_engine(fgm, no_engine, tmp_path):
    result = fgm()
    assert result.exit_code == 1
    assert f"--docker requires a container engine, and none responds at unix://{tmp_path / 'nothing'}" in result.stderr
    assert "run without --docker" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_without_the_image(fgm, serve, tmp_path):
    serve(Empty)
    result = fgm()
    assert result.exit_code == 1
    assert f"The container engine has no image {IMAGE}. Build it with `make image`." in result.stderr
    assert not (tmp_path / "runs").exists()


def test_without_the_rights_of_this_user(fgm, serve, tmp_path):
    serve(Rootless)
    result = fgm()
    assert result.exit_code == 1
    assert "--docker requires an engine that runs as root" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_without_a_server_to_track_in(fgm, no_engine, tmp_path):
    result = fgm("--tracking-uri", "postgresql://me:secret@db/mlflow")
    assert result.exit_code == 1
    assert "must begin with http:// or https://. Received: postgresql:..." in result.stderr
    assert "secret" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_invalid_arguments_are_reported_before_the_engine_is_contacted(fgm, no_engine):
    result = fgm("--eps", "-1")
    assert result.exit_code == exit_codes.BAD_INPUT
    assert "eps must be" in result.stderr


def test_mlflow_cannot_be_served_before_the_first_run(tmp_path):
    result = evasion("mlflow", "--output", tmp_path)
    assert result.exit_code == exit_codes.BAD_INPUT
    assert "contains no run of `evasion run --docker`" in result.stderr


@pytest.mark.parametrize(
    ("uri", "network"),
    [
        ("http://localhost:5000", "host"),
        ("http://127.0.0.1:5000", "host"),
        ("http://[::1]:5000", "host"),
        ("https://me:secret@mlflow.example", "bridge"),
    ],
)
def test_a_server_on_this_machine_is_reached_over_its_network(uri, network):
    assert server.existing(uri) == server.Server(uri, uri, network)


def test_the_server_is_reached_without_a_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intranet")
    variables = server.proxy_exceptions(server.Server("http://127.0.0.1:1", "http://mlflow:5000", "evasion"))
    assert variables == {"NO_PROXY": "intranet,mlflow", "no_proxy": "intranet,mlflow"}


def test_paths_that_steps_read(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "weights.h5").touch()
    for name in ("my model.keras", "other"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "data")
    given = {"data_dir": ".", "weights": "../weights.h5", "model_tag": str(tmp_path / "other")}
    given |= {"name": "../my model.keras"}
    remote = {"data_dir": "gs://bucket/images", "weights": "imagenet", "name": "lab_le_net"}
    planned = [PlannedStep("a", "a", "a", arguments, frozenset(), {}) for arguments in (given, remote, given)]
    paths = [str(tmp_path / name) for name in ("data", "my model.keras", "weights.h5")]
    assert containers.local_paths(planned) == paths


@pytest.mark.parametrize(("mode", "readable"), [(0o700, False), (0o754, False), (0o755, True)])
def test_containers_started_by_root_may_not_read_everything(tmp_path, monkeypatch, mode, readable):
    monkeypatch.setattr(containers.os, "getuid", lambda: 0)
    data = tmp_path / "my data"
    data.mkdir(mode)
    planned = [PlannedStep("a", "a", "a", {"data_dir": str(data)}, frozenset(), {})]
    if readable:
        assert containers.local_paths(planned) == [str(data)]
    else:
        with pytest.raises(containers.EngineError, match=rf"chmod -R o\+rX '{data}'"):
            containers.local_paths(planned)


def test_lines_arrive_in_chunks():
    chunks = ["zwölf\nha".encode()[:3], "zwölf\nha".encode()[3:], b"lf\n\nend"]
    assert list(containers._lines(chunks)) == ["zwölf", "half", "", "end"]


@pytest.mark.parametrize(("target", "suffix"), [("cpu", ""), ("gpu", "-gpu"), ("mlflow", "-mlflow")])
def test_images_have_the_version_as_their_tag(target, suffix):
    from importlib.metadata import version

    assert containers.image(target) == f"evasion-pipelines:{version('evasion-pipelines')}{suffix}"


def test_a_long_variable_that_begins_as_a_path_is_no_file(tmp_path, monkeypatch):
    """Its value may be a secret, and was in the error."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "/" + 300 * "s")
    launcher = containers.ContainerLauncher(
        None, network="bridge", outputs=tmp_path / "steps", inputs=["/data"], variables={}
    )
    assert not [path for path in launcher._inputs if path.startswith("/s")]
