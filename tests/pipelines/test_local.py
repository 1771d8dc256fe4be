"""Runs small pipelines with kfp.local: their files, the events of the listener, and failures."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output
from mlflow import MlflowClient

from evasion.components.common import tracking
from evasion.components.step import step
from evasion.pipelines import plan
from evasion.pipelines.local import kfp_patches, runner
from evasion.pipelines.local.kfp_patches import KfpVersionError
from evasion.pipelines.local.results import RunListener, StepFailedError
from evasion.pipelines.plan import BadArgumentsError


@step
def pack(dataset: Output[Dataset], metrics: Output[Metrics], data_dir: str, images: int = 3):
    import pathlib
    import sys

    for done in range(images):
        print(f"progress: {done + 1}/{images} images", file=sys.stderr, flush=True)
    print("\x1b[32mpacked\x1b[0m from " + data_dir)
    pathlib.Path(dataset.path).write_text(data_dir)
    dataset.metadata["classes"] = 10
    metrics.metadata.update({"images": images})


@step
def variables(environment: Output[Artifact]):
    import json
    import os
    import pathlib

    pathlib.Path(environment.path).write_text(json.dumps(dict(os.environ)))


@step
def refuse(dataset: Input[Dataset], how: str):
    import os
    import signal

    if how == "rule":
        raise ValueError("eps must be in (0, 1]. Received: eps=-0.3")
    if how == "own":
        from evasion.components.common.tracking import TrackingError

        raise TrackingError("MLflow has no such run.\nLook again.")
    if how == "unreachable":
        from evasion.components.common import tracking

        raise tracking.TrackingError(f"MLflow at http://mlflow {tracking.UNREACHABLE}: timed out")
    if how == "cause":
        raise KeyError("first") from RuntimeError("second")
    if how == "status":
        print("the library said why")
        os._exit(3)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


@step
def tracked(how: str):
    import os
    import signal
    import sys

    from evasion.components.common import tracking

    with tracking.stage("tracked", {}):
        if how == "incomplete":
            print("warning: tracking is incomplete: the registry is full", file=sys.stderr)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


@step
def untouched(dataset: Input[Dataset]):
    raise AssertionError("this step runs after a failure")


@step
def report(html: Output[HTML], summary: Output[Artifact]):
    import pathlib

    pathlib.Path(html.path).write_text("<p>page</p>")
    pathlib.Path(summary.path).write_text('{"table": []}')


@step
def not_a_number(metrics: Output[Metrics]):
    metrics.metadata["loss"] = float("nan")


@dsl.pipeline
def packing(data_dir: str, images: int = 3, reported: bool = True):
    first = pack(data_dir=data_dir, images=images)
    second = variables().after(first)
    with dsl.If(reported == True):  # noqa: E712 - a condition of the pipeline
        report().after(second)


@dsl.pipeline
def refusing(how: str = "rule"):
    packed = pack(data_dir="x")
    failing = refuse(dataset=packed.outputs["dataset"], how=how)
    with dsl.If(how != ""):  # a branch, which kfp runs even after a failure elsewhere
        untouched(dataset=packed.outputs["dataset"]).after(failing)
    pack(data_dir="y").after(packed)


@step
def split(parts: int) -> list[str]:
    return [f"part {index}" for index in range(parts)]


@step
def name() -> str:
    return "whole"


@step
def work(part: str, whole: str, result: Output[Dataset], fail_at: str):
    import pathlib

    if part == fail_at:
        raise ValueError(f"part must be another. Received: part={part!r}")
    pathlib.Path(result.path).write_text(f"{part} of {whole}")


@step
def gather(parts: Input[list[Dataset]], all_parts: Output[Artifact]):
    import pathlib

    pathlib.Path(all_parts.path).write_text(", ".join(pathlib.Path(part.path).read_text() for part in parts))


@dsl.pipeline
def looping(parts: int = 3, fail_at: str = ""):
    split_task = split(parts=parts)
    name_task = name().after(split_task)
    with dsl.ParallelFor(split_task.output) as part:
        worked = work(part=part, whole=name_task.output, fail_at=fail_at)
    gather(parts=dsl.Collected(worked.outputs["result"]))


@step
def load_model() -> str:
    return "model"


@dsl.pipeline
def without_order():
    for _ in range(3):
        name()
    split(parts=1)
    load_model()


@dsl.pipeline
def tracking_one(how: str = "killed"):
    tracked(how=how)


@dsl.pipeline
def tracking_two():
    variables().after(tracked(how="incomplete"))


@dsl.pipeline
def measuring_nothing():
    not_a_number()


class Recorder(RunListener):
    def __init__(self):
        self.events = []

    def planned(self, run_dir, steps):
        self.events.append(("planned", len(steps)))

    def step_started(self, step, number, total):
        self.events.append(("started", step.name, number, total))

    def line(self, text):
        self.events.append(("line", text))

    def progress(self, done, total, unit):
        self.events.append(("progress", done, total, unit))

    def step_finished(self, result):
        self.events.append(("finished", result.step.name))


def environment():
    return {
        name: value for name, value in os.environ.items() if not name.startswith("_MLFLOW")
    }  # MLflow's internal variables


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("python3 runs")  # kfp would replace this "python3", and fail at the space


@pytest.fixture(scope="module")
def packed(output):
    recorder = Recorder()
    before = environment()
    result = runner.run(packing, {"data_dir": "/data/python3/set"}, output=output, experiment="e", listener=recorder)
    assert environment() == before
    return result, recorder.events


def test_the_listener_receives_all_events(packed):
    _, events = packed
    assert events[:2] == [("planned", 3), ("started", "pack", 1, 3)]
    assert ("progress", 3, 3, "images") in events
    assert ("line", "packed from /data/python3/set") in events
    assert [event[1:] for event in events if event[0] == "started"][-1] == ("report", 3, 3)
    assert [event[1] for event in events if event[0] == "finished"] == ["pack", "variables", "report"]


def test_the_result_has_the_paths_of_all_files(packed, output):
    result, _ = packed
    assert result.run_dir.parent == output
    assert result.run_dir.name.startswith("packing-")
    first = result.steps[0]
    assert first.outputs["dataset"].read_text() == "/data/python3/set"
    assert first.metrics == {"images": 3}
    assert first.seconds > 0
    assert result.report is not None
    assert result.report == result.run_dir / "report.html"
    assert result.report.read_text() == "<p>page</p>"
    assert result.summary is not None
    assert json.loads(result.summary.read_text()) == {"table": []}


def test_the_log_is_complete_and_without_colours(packed):
    result, _ = packed
    log = result.log.read_text()
    assert "packed from /data/python3/set" in log
    assert "Executing task 'pack'" in log
    assert "\x1b" not in log


def test_the_steps_inherit_the_variables_of_mlflow(packed, output):
    result, _ = packed
    (file,) = [step.outputs["environment"] for step in result.steps if step.step.function == "variables"]
    inherited = json.loads(file.read_text())
    assert inherited["MLFLOW_TRACKING_URI"] == f"sqlite:///{output}/mlflow.db" == result.tracking_uri
    assert inherited["MLFLOW_EXPERIMENT_NAME"] == "e"
    assert inherited["MLFLOW_RUN_ID"] == result.run_id
    assert inherited["EVASION_ARTIFACT_ROOT"] == str(output / "mlartifacts")
    assert inherited["PYTHONUNBUFFERED"] == "1"
    # A step's temporary folder is removed with its contents.
    assert not Path(inherited["TMPDIR"]).exists()


def test_the_run_is_in_mlflow(packed, output):
    result, _ = packed
    run = MlflowClient(result.tracking_uri).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"data_dir": "/data/python3/set", "images": "3", "reported": "True"}


def test_a_pipeline_without_report_has_its_own_folder(packed, output):
    first, _ = packed
    result = runner.run(packing, {"data_dir": "x", "reported": False}, output=output, experiment="e")
    assert result.run_dir != first.run_dir
    assert [step.step.function for step in result.steps] == ["pack", "variables"]
    assert result.report is None
    assert result.summary is None


def test_kfp_is_left_as_it_was(packed):
    from kfp.local import graph_utils
    from kfp.local.config import LocalExecutionConfig
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ParallelExecutor
    from kfp.local.subprocess_task_handler import SubprocessTaskHandler

    assert LocalExecutionConfig.instance is None
    assert isinstance(SubprocessTaskHandler, type)
    assert ParallelExecutor.execute_parallel_tasks.__module__.startswith("kfp.")
    assert graph_utils.topological_sort_tasks.__module__.startswith("kfp.")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("rule", "eps must be in (0, 1]. Received: eps=-0.3"),
        ("own", "MLflow has no such run.\nLook again."),
        ("cause", "KeyError: 'first'"),
        ("status", "exited with status 3 after printing: the library said why"),
        ("killed", "killed by the system, most likely because it ran out of memory"),
    ],
)
def test_a_failed_step_ends_the_run_with_its_own_error(output, how, message):
    recorder = Recorder()
    with pytest.raises(StepFailedError) as failure:
        runner.run(refusing, {"how": how}, output=output, experiment="e", listener=recorder)
    assert failure.value.step == "refuse"
    assert failure.value.message == message
    assert str(failure.value) == f"refuse: {message}"
    assert failure.value.log.is_file()
    last = [event for event in recorder.events if event[0] == "started"][-1]
    assert last[1] == "refuse"  # no step starts after it


def test_independent_steps_run_in_a_fixed_order(output):
    """A compiled pipeline holds its tasks in a map, whose order differs from run to run."""
    recorder = Recorder()
    runner.run(without_order, {}, output=output, experiment="e", listener=recorder)
    started = [event[1] for event in recorder.events if event[0] == "started"]
    assert started == ["load_model", "name", "name-2", "name-3", "split"]
    assert started == [step.name for step in plan.planned_steps(without_order, {})]


def test_a_loop_runs_its_rounds_in_order_and_passes_on_their_results(output):
    recorder = Recorder()
    result = runner.run(looping, {}, output=output, experiment="e", listener=recorder)
    assert result.steps[-1].outputs["all_parts"].read_text() == "part 0 of whole, part 1 of whole, part 2 of whole"
    started = [event[1:] for event in recorder.events if event[0] == "started"]
    # The number of rounds is known when the loop begins.
    assert started == [
        ("split", 1, 4),
        ("name", 2, 4),
        ("work 1/3", 3, 6),
        ("work 2/3", 4, 6),
        ("work 3/3", 5, 6),
        ("gather", 6, 6),
    ]


def test_a_step_that_fails_in_a_loop_ends_the_run_with_its_own_error(output):
    recorder = Recorder()
    with pytest.raises(StepFailedError) as failure:
        runner.run(looping, {"fail_at": "part 1"}, output=output, experiment="e", listener=recorder)
    assert str(failure.value) == "work 2/3: part must be another. Received: part='part 1'"
    assert [event[1] for event in recorder.events if event[0] == "started"][-1] == "work 2/3"


def test_a_failed_run_is_failed_in_mlflow(output):
    with pytest.raises(StepFailedError):
        runner.run(refusing, {}, output=output, experiment="failing")
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("failing").experiment_id])
    assert run.info.status == "FAILED"


def test_the_run_of_a_killed_step_is_failed_in_mlflow(output):
    with pytest.raises(StepFailedError, match="killed by the system"):
        runner.run(tracking_one, {}, output=output, experiment="killed")
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("killed").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
    assert {run.data.tags["stage"] for run in runs} == {"tracked", "pipeline"}


def test_what_is_not_in_mlflow_is_in_the_last_lines(output, capsys):
    from rich.console import Console

    from evasion.pipelines.cli import tables

    result = runner.run(tracking_one, {"how": "incomplete"}, output=output, experiment="e")
    tables.show_result(Console(), result)
    assert capsys.readouterr().out.splitlines()[-1] == "warning: tracking is incomplete: the registry is full"


def test_after_a_step_that_waited_for_mlflow_in_vain_none_waits_as_long(output):
    result = runner.run(tracking_two, {}, output=output, experiment="e")
    assert json.loads(result.steps[-1].outputs["environment"].read_text())[tracking.LOST] == "1"


@pytest.mark.parametrize(("how", "lost"), [("unreachable", True), ("own", False)])
def test_after_a_step_that_could_not_begin_without_mlflow_the_run_ends_soon(output, monkeypatch, how, lost):
    known = []
    monkeypatch.setattr(tracking.connection, "lost", False)
    monkeypatch.setattr(tracking, "end_stages", lambda *_: known.append(tracking.connection.lost))
    with pytest.raises(StepFailedError):
        runner.run(refusing, {"how": how}, output=output, experiment="e")
    assert known == [lost]


def test_an_error_of_kfp_itself_is_reported_with_its_message(output):
    with pytest.raises(StepFailedError, match="not_a_number: "):
        runner.run(measuring_nothing, {}, output=output, experiment="e")


@pytest.mark.parametrize("installed", ["2.18.0", "2.1.7", "2.170.0", "3.2.17.0"])
def test_another_kfp_is_refused_before_anything_starts(tmp_path, monkeypatch, installed):
    monkeypatch.setattr(kfp_patches, "version", lambda package: {"kfp": installed}[package])
    recorder = Recorder()
    message = re.escape(f"kfp must have version 2.17 to run pipelines on this machine. Received: kfp {installed}")
    with pytest.raises(KfpVersionError, match=message):
        runner.run(packing, {"data_dir": "x"}, output=tmp_path / "runs", listener=recorder)
    assert not (tmp_path / "runs").exists()
    assert recorder.events == []


@pytest.mark.parametrize("installed", ["2.17.0", "2.17.3"])
def test_kfp_of_the_supported_version_is_accepted(tmp_path, monkeypatch, installed):
    monkeypatch.setattr(kfp_patches, "version", lambda package: {"kfp": installed}[package])
    with pytest.raises(BadArgumentsError):
        runner.run(packing, {}, output=tmp_path / "runs")


def test_an_invalid_argument_leaves_no_files(tmp_path):
    with pytest.raises(BadArgumentsError, match="data_dir must be given"):
        runner.run(packing, {}, output=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_unreachable_tracking_server_fails_before_any_step(tmp_path):
    from evasion.components.common.tracking import TrackingError

    recorder = Recorder()
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9"):
        runner.run(packing, {"data_dir": "x"}, output=tmp_path, tracking_uri="http://127.0.0.1:9", listener=recorder)
    assert recorder.events == []


INTERRUPTED = """
    from pathlib import Path
    from evasion.components.step import step
    from evasion.pipelines.local import runner
    from kfp import dsl

    @step
    def sleep(marks: str):
        import os, time
        try:
            open(marks + "/started-" + str(os.getpid()), "w").close()
            time.sleep(60)
        finally:
            open(marks + "/ended", "w").close()

    @dsl.pipeline
    def sleeping(marks: str):
        with dsl.ParallelFor(["a loop", "which kfp would run in threads"]):
            sleep(marks=marks)

    runner.run(sleeping, {"marks": MARKS}, output=Path(MARKS), experiment="e")
"""


@pytest.mark.slow
def test_an_interrupt_ends_the_step_and_the_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"MARKS = {str(tmp_path)!r}\n" + textwrap.dedent(INTERRUPTED))
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (started := list(tmp_path.glob("started-*"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert (tmp_path / "ended").exists()  # its cleanup ran
    with pytest.raises(ProcessLookupError):
        os.kill(int(started[0].name.removeprefix("started-")), 0)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert run.info.status == "KILLED"
