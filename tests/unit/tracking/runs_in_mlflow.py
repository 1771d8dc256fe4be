"""What the tests of this folder share."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from ports import reserved_port

VARIABLES = (
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "KFP_RUN_ID",
    "EVASION_ARTIFACT_ROOT",
)


@contextlib.contextmanager
def serving(folder, empty_mlflow):
    """A real `mlflow server` on a free port, its database and artifacts in `folder`; gives its address and process."""
    folder.mkdir(exist_ok=True)
    (folder / "mlflow.db").write_bytes(empty_mlflow.read_bytes())  # making one takes longer than the server's start
    with reserved_port() as port:
        address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{address}/health").close()
                    break
                except urllib.error.URLError:
                    assert process.poll() is None, (folder / "log.txt").read_text()
                    time.sleep(0.1)
            else:
                pytest.fail((folder / "log.txt").read_text())
            yield address, process
        finally:
            kill(process)


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the server and its worker, which have a session of their own
    process.wait()


def runs_of(client, name=None):
    experiment = client.get_experiment_by_name(name or os.environ["MLFLOW_EXPERIMENT_NAME"])
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def statuses(client):
    return {run.data.tags["stage"]: run.info.status for run in runs_of(client)}
