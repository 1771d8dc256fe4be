"""Runs of pipelines in containers: the same numbers, write access only to the outputs, and correct final states."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from kfp import dsl
from kfp.dsl import Artifact, Output
from mlflow import MlflowClient

from evasion.components.step import step
from evasion.pipelines.catalog import pipelines
from evasion.pipelines.local import containers, runner, server
from evasion.pipelines.local.results import StepFailedError


@pytest.fixture(scope="module")
def arguments(mnist):
    return {
        "data_dir_train": str(mnist / "training"),
        "data_dir_test": str(mnist / "testing"),
        "model_architecture": "le_net",
        "epochs": 2.5,
        "eps": 0.1,
        "batch_size": 32,
        "seed": 1,
        "auto_attack_max_iter": 3,
        "auto_attack_n_queries": 3,
        "curve_pgd_max_iter": 1,
    }


@pytest.fixture(scope="module")
def evaluated(run, arguments):
    return run(pipelines()["evaluation_trained"], **arguments)


def test_the_whole_evaluation_of_mnist_gives_the_numbers_of_processes(evaluated, arguments, table, tmp_path):
    assert table(evaluated) == table(runner.run(pipelines()["evaluation_trained"], arguments, output=tmp_path))


def test_the_evaluation_is_in_mlflow(evaluated, mlflow):
    client = MlflowClient(mlflow.address)
    parent = client.get_run(evaluated.run_id)
    filters = f"tags.`mlflow.parentRunId` = '{evaluated.run_id}'"
    stages = client.search_runs([parent.info.experiment_id], filters)
    assert {parent.info.status, *(one.info.status for one in stages)} == {"FINISHED"}
    names = {"load_dataset", "train", "infer", "fgm", "spatial_smoothing", "security_curve", "report"}
    assert {one.info.run_name for one in stages} >= names
    for stage in stages:
        assert re.fullmatch("[0-9a-f]{40}", stage.data.tags["mlflow.source.git.commit"])
        assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", stage.data.tags["mlflow.docker.image.uri"])
        assert stage.data.tags["parent_report"] == f"runs:/{evaluated.run_id}/report/report.json"
    assert "report" in [one.path for one in client.list_artifacts(evaluated.run_id)]
    assert client.get_model_version("evasion_le_net", "1").status == "READY"


@step
def confine(observations: Output[Artifact], data_dir: str):
    import json
    import os
    import pathlib
    import tempfile

    def writable(folder):
        try:
            with tempfile.TemporaryFile(dir=folder):
                return True
        except OSError:
            return False

    folders = [folder for folder, _, _ in os.walk("/") if not folder.startswith(("/proc", "/sys")) and writable(folder)]
    status = dict(line.split(":\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    seen = {
        "user": [os.getuid(), os.getgid()],
        "writable": folders,
        "temporary": tempfile.gettempdir(),
        "data": sorted(path.name for path in pathlib.Path(data_dir).iterdir()),
        "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16),
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "variables": dict(os.environ),
    }
    print("progress: 1/1 looks")
    pathlib.Path(observations.path).write_text(json.dumps(seen))


@dsl.pipeline
def confined(data_dir: str):
    confine(data_dir=data_dir).set_env_variable("OF_THE_STEP", "set")


def test_a_step_has_no_rights_outside_its_outputs(run, mnist, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu")
    monkeypatch.setenv("OF_THIS_SHELL", "secret")
    monkeypatch.chdir(mnist)
    result = run(confined, data_dir="testing")  # relative to the current folder
    (only,) = result.steps
    seen = json.loads(only.outputs["observations"].read_text())
    assert tuple(seen["user"]) == containers.user()
    assert 0 not in seen["user"]
    outputs = str(result.run_dir / "steps")
    assert outputs in seen["writable"]
    assert [
        folder for folder in seen["writable"] if not folder.startswith((outputs, "/scratch", "/dev/shm", "/dev/mqueue"))
    ] == []
    assert seen["temporary"] == "/scratch"
    assert seen["data"] == [str(digit) for digit in range(10)]
    assert seen["capabilities"] == 0
    assert seen["no_new_privileges"] == "1"
    assert seen["variables"]["AWS_REGION"] == "eu"
    assert seen["variables"]["OF_THE_STEP"] == "set"
    assert "OF_THIS_SHELL" not in seen["variables"]


@step
def refuse(how: str):
    import os

    if how == "rule":
        raise ValueError("eps must be in (0, 1]. Received: eps=-0.3")
    print("the library said why")
    os._exit(3)


@dsl.pipeline
def refusing(how: str):
    refuse(how=how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("rule", "eps must be in (0, 1]. Received: eps=-0.3"),
        ("status", "exited with status 3 after printing: the library said why"),
    ],
)
def test_a_failed_step_reports_its_own_error(run, beside, how, message):
    before = beside()
    with pytest.raises(StepFailedError) as failure:
        run(refusing, how=how)
    assert failure.value.message == message
    assert failure.value.step == "refuse"
    assert beside() == before


INTERRUPTED = """
    import sys
    from pathlib import Path
    from evasion.components.step import step
    from evasion.pipelines.local import runner
    from kfp import dsl
    from kfp.dsl import Artifact, Output

    @step
    def sleep(marks: Output[Artifact]):
        import pathlib, time
        folder = pathlib.Path(marks.path)
        folder.mkdir(parents=True)
        try:
            (folder / "started").touch()
            time.sleep(60)
        finally:
            (folder / "ended").touch()

    @dsl.pipeline
    def sleeping():
        sleep()

    runner.run(sleeping, {}, output=Path(sys.argv[1]), experiment="interrupted", docker=True)
"""


def test_an_interrupt_ends_the_step_its_container_and_the_run(output, mlflow, beside, tmp_path):
    before = beside()
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(INTERRUPTED))
    with subprocess.Popen([sys.executable, script, output], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (started := list(output.glob("sleeping-*/steps/*/sleep/marks/started"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert started[0].with_name("ended").exists()  # its cleanup ran
    assert beside() == before
    client = MlflowClient(mlflow.address)
    (run,) = client.search_runs([client.get_experiment_by_name("interrupted").experiment_id])
    assert run.info.status == "KILLED"


def test_mlflows_data_outlives_its_containers(engine, tmp_path):
    folder = tmp_path / "server"
    with server.running(engine, folder) as first:
        client = MlflowClient(first.address)
        kept = client.create_run(client.create_experiment("kept")).info.run_id
        client.log_dict(kept, {"a": 1}, "a.json")
        with server.running(engine, folder) as second:
            assert second == first
        client.get_run(kept)  # the server of the outer block is still running
    assert not engine.networks.list(names=[first.network])
    assert not [one for one in engine.containers.list(all=True) if one.name.endswith(first.network[-8:])]
    with server.running(engine, folder) as again:
        client = MlflowClient(again.address)
        assert client.get_run(kept).info.run_id == kept
        assert [one.path for one in client.list_artifacts(kept)] == ["a.json"]
    if os.getuid() == 0:
        assert {path.stat().st_uid for path in (folder / "postgres").iterdir()} == {containers.NOBODY}


def test_the_command(evaluated, mnist, output):
    arguments = ["--data-dir", str(mnist / "testing"), "--model", "evasion_le_net", "--model-architecture", "le_net"]
    command = "from evasion.pipelines.cli.main import main; main(prog_name='evasion')"
    finished = subprocess.run(
        [sys.executable, "-c", command, "run", "fgm", "--docker", *arguments, "--eps", "0.1", "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "starting MLflow and PostgreSQL" in finished.stderr
    assert f"see it with: evasion mlflow --output {output}" in finished.stdout
