"""What `evasion submit` sends, shows and ends with."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from kfp_server import Story
from submitting import only

from evasion.pipelines import catalog
from evasion.pipelines.cli import commands, main
from evasion.pipelines.cli.submit import command as submit_command
from evasion.pipelines.submit import logs, watch, workflow

COMPILED = Path(__file__).parents[3] / "pipelines" / "compiled" / "cpu"


FGM = ["--data-dir", "/data/test", "--model", "m", "--model-architecture", "le_net"]


EVALUATION = ["evaluation", "--model", "m", "--model-architecture", "le_net", "--data-dir-test", "x"]


def test_a_pipeline_is_uploaded_once_run_and_followed(submit, kfp_server):
    kfp_server.story = Story(per_look=1)
    result = submit(
        "fgm", *FGM, "--eps", "0.1", "--run-name", "nightly", "--experiment", "signs", "--git-commit", "c0ffee"
    )
    run = only(kfp_server.runs).model
    assert result.stdout == f"Run: {kfp_server.address}/#/runs/details/{run.run_id}\n"
    assert run.display_name == "nightly"
    assert run.description.startswith("evasion submit fgm, commit c0ffee (submission ")
    arguments = run.runtime_config.parameters
    assert arguments["data_dir"] == "/data/test"  # a path in the cluster, which does not exist here
    assert arguments["eps"] == 0.1
    assert only(kfp_server.experiments).display_name == "signs"
    pipeline, version = only(kfp_server.pipelines), only(kfp_server.versions)
    assert pipeline.name == "evasion-fgm"
    assert re.fullmatch(r"evasion-fgm-[0-9a-f]{12}", version.name)
    assert f"uploaded {version.name}" in result.stderr
    assert '"MLFLOW_EXPERIMENT_NAME"' in json.dumps(version.pipeline_spec)
    for line in ("load_dataset: started", "load_dataset: done in 5.0 s", "infer: done in"):
        assert line in result.stderr
    assert result.stderr.index("load_dataset: done") < result.stderr.index("fgm: done")
    assert result.stderr.endswith("The run succeeded.\n")

    again = submit("fgm", *FGM, "--experiment", "signs", "--no-wait")
    assert f"already there: {version.name}" in again.stderr
    assert len(kfp_server.versions) == len(kfp_server.experiments) == 1
    assert len(kfp_server.runs) == 2
    submit("fgm", *FGM, "--experiment", "signs", "--no-wait", "--memory", "8", "--step-timeout", "5")
    assert len(kfp_server.pipelines) == 1
    assert len(kfp_server.versions) == 2


def test_a_compiled_file_is_submitted_unchanged(submit, kfp_server, file):
    submit("--no-wait")
    assert only(kfp_server.packages) == Path(file[0]).read_bytes()
    arguments = only(kfp_server.runs).model.runtime_config.parameters
    assert {name: arguments[name] for name in ("rounds", "strict")} == {"rounds": 3, "strict": True}
    assert arguments["kubeflow_link"] == kfp_server.address
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?|", arguments["git_commit"])
    shown = " ".join(submit(file[0], "--help").stdout.split())
    assert "--rounds INTEGER How often. [required]" in shown
    assert "--memory" not in shown  # compiled into the file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fgm", *FGM, "--eps", "2"], "Set --eps."),
        (["fgm", "--data-dir", "x"], "Missing option '--model'"),
        ([str(COMPILED / "fgm.yaml"), *FGM, "--eps", "2"], "Set --eps."),
        (["fgm", *FGM, "--memory", "0"], "Set --memory."),
        (["fgm", *FGM, "--step-timeout", "-1"], "Set --step-timeout."),
        (["--cron", "every day"], "Set --cron."),
        (["--timeout", "soon"], "Invalid duration: 'soon'. Use e.g. 90m, 2h30m or 45s."),
        (["--output", "x"], "requires a pipeline with a report"),
        ([*EVALUATION, "--output", "x"], "Set --tracking-uri."),
        ([*EVALUATION, "--output", "x", "--no-wait"], "Omit --no-wait."),
        ([*EVALUATION, "--output", "x", "--cron", "@daily"], "Omit --cron."),
        ([*EVALUATION, "--attacks", "fgn"], "fgn"),
        ([*EVALUATION, "--data-dir-test", " "], "data_dir must be given"),
        (["fgn"], "No such pipeline: fgn."),
        (["missing.yaml"], "missing.yaml"),
        ([__file__.replace(".py", ".yaml")], "test_submit_runs.yaml"),
        (["--port-forward", "--host", "http://x"], "exclude each other"),
        (["--host", "kubeflow.example"], "http:// or https://"),
    ],
)
def test_invalid_options_are_reported_before_anything_is_sent(submit, kfp_server, arguments, message):
    assert message in " ".join(submit(*arguments, code=2).stderr.split())
    assert kfp_server.asked == []


def test_a_file_that_is_not_a_pipeline_is_refused(submit, tmp_path):
    for content in ("", "a: b", "{", "components: {}\nroot: {dag: {tasks: {}}}\npipelineInfo: {name: x}"):
        (tmp_path / "x.yaml").write_text(content)
        assert "must be the YAML of a compiled pipeline" in submit(str(tmp_path / "x.yaml"), code=2).stderr


def test_a_missing_host_is_reported(file):
    result = CliRunner().invoke(main.main, ["submit", *file])
    assert result.exit_code == 2
    assert "Set --host or --port-forward." in result.stderr


@pytest.mark.parametrize("name", list(catalog.pipelines()))
def test_names_of_options_are_unique(name):
    command = submit_command._command(commands.command(name))
    names = [option.name for option in command.params]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("ends", "code"), [("FAILED", 1), ("CANCELED", 3), ("SKIPPED", 3)])
def test_the_exit_code_is_the_state_of_the_run(submit, kfp_server, ends, code):
    kfp_server.story = Story(ends=ends)
    result = submit(code=code)
    assert f"Run: {kfp_server.address}/#/runs/details/" in result.stderr.splitlines()[-1]


def test_shards_receive_their_imported_datasets(submit, kfp_server):
    assert submit(*EVALUATION, "--shards", "2").stderr.endswith("The run succeeded.\n")


TRACEBACK = "Traceback (most recent call last):\n  …\nValueError: eps must be in (0, 1]. Received: eps=-0.3"


@pytest.mark.parametrize("shows_workflows", [True, False])
@pytest.mark.parametrize("tries_all_again", [True, False])
def test_a_failed_steps_log_is_shown(submit, kfp_server, shows_workflows, tries_all_again):
    """Of the pod that ran, however the cluster's Argo names its nodes, and whether or not Kubeflow shows them."""
    kfp_server.shows_workflows, kfp_server.tries_all_again = shows_workflows, tries_all_again
    printed = "\n".join(f"line {number}" for number in range(300)) + f"\n{TRACEBACK}\nI0 launcher ends"
    kfp_server.story = Story(ends="FAILED", fails="measure", error="exit code 1", log={"measure": printed})
    result = submit(code=1)
    assert f"measure: failed in 5.0 s{': exit code 1' if shows_workflows else ''}\n" in result.stderr
    # The step's error message comes first, and again at the end.
    message = "measure: eps must be in (0, 1]. Received: eps=-0.3\n"
    head, shown = result.stderr.split(
        "The last lines of measure (pod evasion-measuring-x7k2p-retry-system-container-impl-"
    )
    assert head.endswith(message)
    assert f"Error: The run failed: {message}" in shown
    assert "    line 299\n    Traceback" in shown
    assert "line 110\n" in shown
    assert "line 99\n" not in shown
    assert "The last lines of judge" not in result.stderr


def test_an_error_in_place_of_a_log_is_not_a_log(submit, kfp_server):
    kfp_server.story = Story(ends="FAILED", fails="measure", error="exit code 1")
    result = submit(code=1)
    assert "Could not fetch the log of measure" in result.stderr
    assert "Could not get main container logs" in result.stderr
    assert "error_details" not in result.stderr
    assert "The last lines of measure" not in result.stderr
    assert "Error: The run failed: measure: exit code 1\n" in result.stderr


def test_steps_are_shown_to_their_end_where_argo_compresses_their_nodes(submit, kfp_server):
    kfp_server.story = Story(per_look=1, compressed=True)
    assert "judge: done in 5.0 s" in submit().stderr


def test_without_a_failed_step_the_failed_node_is_named(submit, kfp_server):
    message = "The specified bucket does not exist"
    kfp_server.story = Story(ends="FAILED", fails="root-driver", error=message)
    assert f"Error: The run failed: the driver of root: {message}\n" in submit(code=1).stderr


def test_of_shards_the_one_that_failed_counts_and_its_log_is_shown(submit, kfp_server):
    kfp_server.story = Story(ends="FAILED", fails="fgm", fails_in=1, error="exit code 1", log={"fgm": "No eps."})
    result = submit(*EVALUATION, "--shards", "3", code=1)
    assert "fgm: failed in 5.0 s: exit code 1" in result.stderr
    assert "The last lines of fgm (pod evasion-evaluation-registered-x7k2p-" in result.stderr
    assert "    No eps.\n" in result.stderr
    assert "All is well." not in result.stderr


def test_the_least_advanced_round_of_a_loop_counts():
    def state(*states):
        nodes = [workflow.Node("fgm", state) for state in states]
        (progress,) = watch.progress(nodes, [SimpleNamespace(task="fgm")])
        return progress.state

    assert state("SUCCEEDED", "FAILED", "SUCCEEDED") == "FAILED"
    assert state("RUNNING", "SUCCEEDED") == state("SUCCEEDED", "RUNNING") == "RUNNING"
    assert state("SUCCEEDED", "SUCCEEDED") == "SUCCEEDED"


def test_port_forward_takes_precedence_over_the_variable(monkeypatch):
    monkeypatch.setenv("KFP_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", "/nowhere")
    result = CliRunner().invoke(main.main, ["submit", "fgm", *FGM, "--port-forward"])
    assert result.exit_code == 5
    assert "kubectl" in result.stderr


def test_without_a_log_its_location_is_shown(submit, kfp_server):
    kfp_server.story = Story(ends="FAILED", fails="measure-driver", error="cannot pull the image")
    result = submit("--namespace", "signs", code=1)
    assert "measure: failed in 5.0 s" in result.stderr
    (run_id,) = kfp_server.runs
    assert f"kubectl logs --namespace signs --selector pipeline/runid={run_id}" in result.stderr


def test_the_hash_of_a_node_is_fnv_1a():
    # From the authors' own test vectors.
    assert logs._hash("") == 0x811C9DC5
    assert logs._hash("foobar") == 0xBF9CF968
