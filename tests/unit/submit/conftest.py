"""Fixtures that the tests of this folder share."""

import os
import stat
import sys

import pytest
from click.testing import CliRunner
from kfp.compiler import Compiler
from submitting import KUBECTL, measuring

from evasion.pipelines.cli import main
from evasion.pipelines.placement import Placement, place
from evasion.pipelines.submit import auth, host, watch


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small compiled pipeline, as what is submitted."""
    path = tmp_path_factory.mktemp("compiled") / "measuring.yaml"
    Compiler().compile(place(measuring, Placement()), str(path))
    return [str(path), "--rounds", "3"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shorten the pauses; remove the host and the credentials from the environment."""
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    monkeypatch.setattr(host, "BACKOFF", 0.01)
    for name in ("KFP_HOST", "KFP_TOKEN", "KFP_COOKIE", "KFP_NAMESPACE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(auth.TOKEN_FILE_VARIABLE, "/no/token")


@pytest.fixture
def submit(kfp_server, file):
    """Submit, the small file unless a pipeline is named."""

    def run(*arguments, code=0):
        arguments = [*([] if arguments and not arguments[0].startswith("--") else file), *arguments]
        where = [] if "--host" in arguments or "--port-forward" in arguments else ["--host", kfp_server.address]
        result = CliRunner().invoke(main.main, ["submit", *arguments, *where])
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return run


@pytest.fixture
def kubectl(tmp_path, monkeypatch, kfp_server):
    """A kubectl that forwards a port to the server, as the real one does."""

    def make(text=KUBECTL, connections=1000, mlflow=kfp_server.address):
        file = tmp_path / "kubectl"
        port, mlflow = (address.rpartition(":")[2] for address in (kfp_server.address, mlflow))
        asked = tmp_path / "asked"
        file.write_text(
            text.format(python=sys.executable, port=port, mlflow=mlflow, connections=connections, asked=asked)
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make
