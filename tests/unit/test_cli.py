"""The command line: options derived from signatures, errors, exit codes and output."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output
from rich.console import Console
from summaries import summary

from evasion.components.common.data.provenance import AWARE, OBLIVIOUS
from evasion.components.common.results.check import Check
from evasion.components.common.results.shares import Share
from evasion.components.common.results.table import Attacked, Row
from evasion.components.common.results.treatments import NONE, Treatment
from evasion.components.step import step
from evasion.pipelines import catalog, placement, stages
from evasion.pipelines.cli import durations, main, run, run_progress, tables
from evasion.pipelines.local.results import StepResult
from evasion.pipelines.plan import PlannedStep

EVASION = [sys.executable, "-c", "from evasion.pipelines.cli.main import main; main(prog_name='evasion')"]

PIPELINES = list(catalog.pipelines())

HEADLINE = "fgm takes the accuracy of le_net from 90.0 % to 20.0 %."
FGM, JPEG = Treatment("fgm", "eps=0.3"), Treatment("jpeg_compression [x]", "quality=50")
HIGH, LOW = Share(0.9, 0.85, 0.94, 100, 90), Share(0.2, 0.1, 0.3, 100, 20)
UNDEFENDED = Row(FGM, NONE, HIGH, judged=Attacked(LOW, HIGH))
CHECKS = (
    Check("clean accuracy", "model", "pass", "0.9"),
    Check("saturation", "clean", "warn", "12 images", "Look."),
)
SUMMARY = summary(HEADLINE, (UNDEFENDED, Row(FGM, JPEG, HIGH, judged=Attacked(LOW))), CHECKS)


@step
def infer(metrics: Output[Metrics], accuracy: float):
    import sys

    print("progress: 1/2 batches", file=sys.stderr)
    print("a word of the step")
    if accuracy < 0.5:
        raise ValueError(f"accuracy is too low. Received: accuracy={accuracy}")
    metrics.metadata.update({"accuracy": accuracy, "images": 10})


@step
def report(html: Output[HTML], summary: Output[Artifact], text: str):
    from pathlib import Path

    Path(html.path).write_text("<p>page</p>")
    Path(summary.path).write_text(text)


@step
def wait(marks: str):
    import time
    from pathlib import Path

    Path(marks, "waiting").touch()
    time.sleep(60)


@dsl.pipeline
def measuring(accuracy: float, label: str = "", careful: bool = True, rounds: int = 2):
    """Measure one number.

    In two ways:

        first this
        then that

    Args:
        accuracy: What comes out,
            in [0, 1].
        careful: Whether to take care.
    """
    infer(accuracy=accuracy).set_display_name("infer the number")


@dsl.pipeline
def reporting(text: str):
    """Report what is given."""
    report(text=text)


@pytest.fixture
def small_pipelines(monkeypatch):
    monkeypatch.setattr(catalog, "pipelines", lambda: {"measuring": measuring, "reporting": reporting})
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def evasion(*args):
    return CliRunner().invoke(main.main, [str(arg) for arg in args], prog_name="evasion")


def listed(help_text):
    """A help text on a single line."""
    return " ".join(help_text.split())


def test_help_imports_nothing_heavy():
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", *EVASION[1:], "--help"], capture_output=True, text=True, check=True
    )
    for heavy in ("kfp", "mlflow", "rich", "numpy"):
        assert not re.search(rf"\| +{heavy}\n", loaded.stderr)


def test_all_pipelines_are_listed():
    result = evasion("list")
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        *("init_model", "train", "infer", *stages.attacks(), *stages.defenses(), "evaluation"),
    ]
    assert "Attack a packed dataset with the Fast Gradient Method" in result.stdout


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_of_a_pipeline_is_a_documented_option(name):
    result = evasion("run", name, "--help")
    assert result.exit_code == 0
    shown = listed(result.stdout).replace("- ", "-")  # a long default is broken after a hyphen
    for parameter, declared in catalog.pipelines()[name].component_spec.inputs.items():
        option = f"--{parameter.replace('_', '-')}"
        entry = re.search(rf" {option} (TEXT|INTEGER|FLOAT|true\|false) (.*?)(?= --[a-z]|$)", shown)
        assert entry is not None, option
        kind = {"String": "TEXT", "Integer": "INTEGER", "Float": "FLOAT", "Boolean": "true|false"}[declared.type]
        assert entry[1] == kind
        assert declared.description
        default = "" if declared.default in (None, "") else str(declared.default)
        if not declared.optional:
            assert "[required]" in entry[2]
        elif default:
            expected = default.lower() if declared.type == "Boolean" else default
            assert f"default: {expected}]" in entry[2]
    assert f"evasion run {name}" in shown


@pytest.mark.parametrize("name", PIPELINES)
def test_no_parameter_is_hidden_by_an_option_of_the_command(name):
    common = {option.name for option in run._common_options()}
    assert not common & catalog.pipelines()[name].component_spec.inputs.keys()


def test_help_keeps_indented_lines_of_a_docstring(small_pipelines):
    result = evasion("run", "measuring", "--help")
    assert "  Measure one number.\n\n  In two ways:\n\n      first this\n      then that\n" in result.stdout
    assert "Example:\n    evasion run measuring --accuracy ..." in result.stdout
    assert "What comes out, in [0, 1]. [required]" in listed(result.stdout)


@pytest.mark.parametrize("args", [("run", "fgn"), ("compile", "fgn")])
def test_an_unknown_pipeline_is_refused_with_the_choices(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = evasion(*args)
    assert result.exit_code == 2
    assert "No such pipeline: fgn. Choose from init_model, train, infer, auto_attack, fgm," in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Missing option '--accuracy'"),
        (("--accuracy", "abc"), "Invalid value for '--accuracy': 'abc' is not a valid float"),
        (("--accuracy", "1", "--rounds", "1.5"), "'1.5' is not a valid integer"),
        (("--accuracy", "1", "--careful", "maybe"), "'maybe' is not a valid boolean"),
        (("--accurracy", "1"), "No such option '--accurracy'"),
    ],
)
def test_an_invalid_option_is_refused(small_pipelines, tmp_path, options, message):
    result = evasion("run", "measuring", "--output", tmp_path / "runs", *options)
    assert result.exit_code == 2
    assert message in result.stderr.replace("No such option: ", "No such option ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        ("fgm", ("--eps", "-0.3"), "fgm: eps must be in (0, 1]. Received: eps=-0.3. Set --eps."),
        (
            "fgm",
            ("--minimal", "yes", "--eps_step", "0.5"),
            "Received: eps_step=0.5, eps=0.3. Set --eps-step or --eps.",
        ),
        (
            "jpeg-compression",
            ("--jpeg-compression-quality", "101"),
            "Received: quality=101. Set --jpeg-compression-quality.",
        ),
        ("evaluation", ("--pgd-eps", "2", "--apply-defense", "1"), "Received: eps=2.0. Set --pgd-eps."),
        ("evaluation", ("--norm", "3"), "norm must be one of inf, 1, 2. Received: norm='3'. Set --norm."),
    ],
)
def test_an_invalid_value_is_refused_before_anything_starts(tmp_path, pipeline, options, message):
    (tmp_path / "images" / "0").mkdir(parents=True)
    images = str(tmp_path / "images")
    needed = {
        "fgm": ("--data-dir", images, "--model", "m", "--model-architecture", "le_net"),
        "jpeg-compression": ("--data-dir", images, "--model", "m", "--model-architecture", "le_net"),
        "evaluation": ("--data-dir-test", images, "--data-dir-train", images),
    }
    result = evasion("run", pipeline, "--output", tmp_path / "runs", *needed[pipeline], *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(message)
    assert not (tmp_path / "runs").exists()


def test_a_run_shows_its_steps_and_their_metrics(small_pipelines, output):
    result = evasion("run", "measuring", "--accuracy", "0.75", "--output", output, "--careful", "no")
    assert result.exit_code == 0, result.output
    assert "step 1 of 1: infer the number\n" in result.stderr
    assert re.search(r"step 1 of 1: infer the number: done in \d+\.\d s\n", result.stderr)
    assert "a word of the step" not in result.output
    assert re.search(r"accuracy +0\.7500", result.stdout)
    assert re.search(r"images +10\b", result.stdout)
    run_dir = Path(re.search(r"Run: +(.*)", result.stdout)[1])
    assert run_dir.parent == output
    assert "a word of the step" in (run_dir / "log.txt").read_text()
    assert f"mlflow ui --backend-store-uri sqlite:///{output}/mlflow.db" in result.stdout


def test_verbose_shows_the_output_of_steps_and_quiet_only_the_result(small_pipelines, output):
    verbose = evasion("run", "measuring", "--accuracy", "1", "--output", output, "--verbose")
    assert "a word of the step" in verbose.stderr
    assert "progress:" not in verbose.stderr
    quiet = evasion("run", "measuring", "--accuracy", "1", "--output", output, "--quiet")
    assert quiet.stderr == ""
    assert "accuracy" in quiet.stdout


def test_a_failed_step_is_reported_with_its_own_error(small_pipelines, output):
    result = evasion("run", "measuring", "--accuracy", "0.1", "--output", output)
    assert result.exit_code == 1
    assert "Error: infer the number: accuracy is too low. Received: accuracy=0.1\n" in result.stderr
    assert "Traceback" not in result.output
    log = Path(re.search(r"All output: (.*)", result.stderr)[1])
    assert "Traceback" in log.read_text()


def test_a_report_is_shown_as_a_table_and_kept(small_pipelines, output):
    result = evasion("run", "reporting", "--text", json.dumps(SUMMARY), "--output", output)
    assert result.exit_code == 0, result.output
    assert re.search(r"no defense +90\.0 \[85\.0, 94\.0\] +20\.0 \[10\.0, 30\.0\] +90\.0 \[", result.stdout)
    assert re.search(r"jpeg_compression \[x\] +90\.0 \[85\.0, 94\.0\] +20\.0 .* +–", result.stdout)
    assert "fgm takes the accuracy" in result.stdout
    assert "warn saturation (clean): 12 images. Look." in listed(result.stdout)
    report_path = Path(re.search(r"Report: (.*)", result.stdout)[1])
    assert report_path.name == "report.html"
    assert json.loads(report_path.with_suffix(".json").read_text()) == SUMMARY


def test_a_report_of_another_version_is_kept_and_named(small_pipelines, output):
    text = json.dumps(SUMMARY | {"schema_version": 2})
    result = evasion("run", "reporting", "--text", text, "--output", output)
    assert result.exit_code == 1, result.output
    assert "The run succeeded, but its report cannot be shown: " in result.stderr
    assert "must be of schema_version 4. Received: 2." in result.stderr
    assert Path(re.search(r"Report: (.*)", result.stderr)[1]).is_file()


def test_two_attackers_are_two_columns(small_pipelines, output):
    attackers = {AWARE: Attacked(Share(0.21, 0.1, 0.3, 100, 21)), OBLIVIOUS: Attacked(HIGH)}
    defended = Row(FGM, JPEG, HIGH, attackers=attackers, judged=Attacked(Share(0.2, 0.1, 0.3, 100, 20)))
    text = json.dumps(summary(HEADLINE, (UNDEFENDED, defended), CHECKS))
    result = evasion("run", "reporting", "--text", text, "--output", output)
    assert result.exit_code == 0, result.output
    assert re.search(r"aware, % +oblivious, %", result.stdout)
    assert re.search(r"no defense +90\.0 \S+ \S+ +20\.0 \S+ \S+ +90\.0", result.stdout)
    assert re.search(r"jpeg_compression \[x\] +90\.0 \S+ \S+ +20\.0 \S+ \S+ +21\.0 +90\.0 +–", result.stdout)
    assert "an upper bound" in result.stdout


def test_an_unreachable_tracking_server_is_reported_in_one_line(small_pipelines, tmp_path):
    result = evasion(
        "run", "measuring", "--accuracy", "1", "--output", tmp_path, "--tracking-uri", "http://127.0.0.1:9"
    )
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "http://127.0.0.1:9" in result.stderr


WAITING = """
import sys
sys.path.insert(0, {folder!r})
from evasion.pipelines import catalog
from evasion.pipelines.cli import main
import test_cli
from kfp import dsl

@dsl.pipeline
def waiting(marks: str):
    test_cli.wait(marks=marks)

catalog.pipelines = lambda: {{"waiting": waiting}}
main.main(prog_name="evasion")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_exits_with_130(tmp_path, number):
    script = WAITING.format(folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, "run", "waiting", "--marks", str(tmp_path), "--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "waiting").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("Error: interrupted")
    assert "Traceback" not in errors


@pytest.mark.parametrize("names", [("fgm", "spatial-smoothing"), ()])
def test_compile_writes_whole_yamls(tmp_path, names):
    result = evasion("compile", *names, "--output", tmp_path / "compiled")
    assert result.exit_code == 0
    expected = [name.replace("-", "_") for name in names] or PIPELINES
    written = sorted((tmp_path / "compiled").iterdir())
    assert written == sorted(tmp_path / "compiled" / f"{name}.yaml" for name in expected)
    assert sorted(result.stdout.split()) == [str(path) for path in written]
    for path in written:
        spec, platform = yaml.safe_load_all(path.read_text())
        assert spec["pipelineInfo"]["name"] == f"evasion-{path.stem.replace('_', '-')}"
        assert platform["platforms"]["kubernetes"]


def test_compile_writes_whole_steps(tmp_path):
    result = evasion("compile", "load-model", "fgm", "--steps", "--output", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.split() == [str(tmp_path / name / "component.yaml") for name in ("load_model", "fgm")]
    for path in result.stdout.split():
        (spec,) = yaml.safe_load_all(Path(path).read_text())
        assert spec["pipelineInfo"]["name"] == Path(path).parent.name.replace("_", "-")
    result = evasion("compile", "fgn", "--steps", "--output", tmp_path)
    assert result.exit_code == 2
    assert "No such step: fgn. Choose from auto_attack, compare, fgm, gaussian_augmentation, infer," in result.stderr


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--device", "tpu"), "device must be one of cpu, gpu. Received: device='tpu'. Set --device."),
        (("--gpus", 0), "gpus must be a positive integer. Received: gpus=0. Set --gpus."),
        (("--gpu-type", "a b"), "gpu_type must be a Kubernetes resource such as nvidia.com/gpu"),
        (("--gpu-taint", "a=b"), "gpu_taint must be a taint's key, or blank"),
        (("--node-selector", "fast"), "node_selector must be label=value. Received: node_selector='fast'"),
        (("--cpus", 0), "cpus must be in [0.1, 10,000]. Received: cpus=0.0. Set --cpus."),
        (("--memory", "nan"), "memory must be in [0.5, 100,000]. Received: memory=nan. Set --memory."),
        (("--image", "a b"), "image must be an image's name, or blank. Received: image='a b'. Set --image."),
        (("--device", "gpu", "--image", "a@sha256:0"), "gpu_image must be given if image is a digest."),
        (("--dataset-pvc", "My_Data"), "dataset_pvc must be a Kubernetes name"),
        (("--dataset-path", "data"), "dataset_path must be an absolute path, not /. Received: dataset_path='data'"),
        (("--mlflow-uri", "mlflow:5000"), "mlflow_uri must be http:// or https:// and a host"),
        (("--mlflow-uri", "http://me:secret@mlflow"), "mlflow_uri must not contain a password, which belongs in the"),
        (("--mlflow-secret", "A"), "mlflow_secret must be a Kubernetes name"),
        (("--experiment", " "), "experiment must be given. Received: experiment=' '. Set --experiment."),
        (("--timeout", -1), "timeout must be an integer in [0, 35791394]. Received: timeout=-1. Set --timeout."),
        (("--retries", 101), "retries must be an integer in [0, 100]. Received: retries=101. Set --retries."),
        (("--retries", "many"), "Invalid value for '--retries'"),
    ],
)
def test_compile_refuses_bad_values_before_it_writes(tmp_path, options, rule):
    result = evasion("compile", "fgm", *options, "--output", tmp_path / "compiled")
    assert result.exit_code == 2
    assert rule in " ".join(result.stderr.split())
    assert "secret" not in result.stderr.replace("mlflow_secret", "").replace("mlflow-secret", "")
    assert not (tmp_path / "compiled").exists()


def test_compiles_help_documents_every_option():
    result = evasion("compile", "--help")
    for name, default, text in placement.options():
        assert f"--{name.replace('_', '-')} " in result.stdout
        assert text
        assert default is not None


def test_compile_leaves_a_good_file_alone_when_it_fails(tmp_path, monkeypatch):
    from kfp import compiler

    def fail(self, pipeline, package_path):
        Path(package_path).write_text("half")
        raise OSError("disk full")

    (tmp_path / "fgm.yaml").write_text("whole")
    monkeypatch.setattr(compiler.Compiler, "compile", fail)
    result = evasion("compile", "fgm", "--output", tmp_path)
    assert result.exit_code == 1
    assert "disk full" in result.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("fgm.yaml", "whole")]


STEP = PlannedStep("fgm", "fgm", "fgm", {}, frozenset(), {})
RESULT = StepResult(STEP, 75.0, {}, {})


def shown_by(listener_class, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, record=True)
    with listener_class(console, verbose=False) as listener:
        listener.planned(Path("runs/x"), [STEP])
        listener.step_started(STEP, 3, 14)
        listener.progress(1, 1000, "images")
        listener.progress(320, 1000, "images")
        if listener_class is run_progress.RunBars:
            listener._progress.refresh()
            console.print(listener._progress.get_renderable())
        listener.step_finished(RESULT)
    return console.export_text()


def test_progress_outside_a_terminal_is_printed_every_ten_seconds(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 10.0])
    monkeypatch.setattr(run_progress.time, "monotonic", lambda: next(clock))
    assert shown_by(run_progress.RunLines, terminal=False).splitlines() == [
        "1 steps in runs/x",
        "step 3 of 14: fgm",
        "step 3 of 14: fgm: 320/1000 images",
        "step 3 of 14: fgm: done in 1 min 15 s",
    ]


def test_progress_in_a_terminal_is_a_bar_and_then_a_line():
    text = shown_by(run_progress.RunBars, terminal=True)
    assert re.search(r"step 3 of 14: fgm .*320/1000 images 0:00:0\d", text)
    assert "✓  3/14 fgm 1 min 15 s" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (75, "1 min 15 s"), (3720, "1 h 02 min")]
)
def test_durations_are_for_people(seconds, text):
    assert durations.duration(seconds) == text


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("sqlite:////runs/mlflow.db", "mlflow ui --backend-store-uri sqlite:////runs/mlflow.db"),
        ("https://me:secret@mlflow.example:5000", "at https://mlflow.example:5000"),
        ("postgresql://me:secret@db/mlflow", "in postgresql://db/mlflow"),
    ],
)
def test_the_location_of_a_run_shows_no_password(uri, text):
    assert text in tables._where(uri)
    assert "secret" not in tables._where(uri)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("--attacks", "fgm,pgd", "--defenses", "jpeg_compression"), {"fgm", "pgd", "jpeg-compression"}),
        (("--attacks", "pgd", "--defenses", ""), {"pgd"}),
        ((), {"fgm", "auto-attack", "spatial-smoothing", "jpeg-compression", "gaussian-augmentation"}),
    ],
)
def test_attacks_and_defenses_are_selected_by_name(tmp_path, options, steps):
    result = evasion("compile", "evaluation", *options, "--output", tmp_path)
    assert result.exit_code == 0
    sources = {"registered": "load-model", "trained": "train", "pretrained": "init-model"}
    assert result.stdout.split() == [str(tmp_path / f"evaluation_{source}.yaml") for source in sources]
    for source, model_step in sources.items():
        spec, *_ = yaml.safe_load_all((tmp_path / f"evaluation_{source}.yaml").read_text())
        others = {"load-dataset", model_step, "infer", "security-curve", "report", "track-run", "track-run-2"}
        others |= {"load-dataset-2"} if source == "trained" else set()
        assert set(spec["root"]["dag"]["tasks"]) == steps | others


EVALUATIONS = [
    ((), "evaluation_pretrained", ["init_model"]),
    (("--data-dir-train", "."), "evaluation_trained", ["train"]),
    (("--model", "m", "--model-architecture", "le_net"), "evaluation_registered", ["load_model"]),
]


@pytest.mark.parametrize(("options", "pipeline", "steps"), EVALUATIONS, ids=[name for _, name, _ in EVALUATIONS])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_options_select_the_evaluation(monkeypatch, options, pipeline, steps, shards):
    calls = []
    monkeypatch.setattr(run, "run_pipeline", lambda *arguments, **_: calls.append(arguments[:2]))
    result = evasion("run", "evaluation", "--data-dir-test", ".", "--shards", shards, *options)
    assert result.exit_code == 0, result.output
    ((selected, arguments),) = calls
    assert selected.component_spec.name == pipeline.replace("_", "-")
    assert set(arguments) <= set(selected.component_spec.inputs)
    assert arguments.get("shards", 1) == shards
    components = selected.pipeline_spec.components.values()
    functions = {component.executor_label.removeprefix("exec-") for component in components}
    assert {step.replace("_", "-") for step in steps} <= functions
    assert ("importer" in functions) == (shards > 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--model", "m", "--model-architecture", "le_net", "--epochs", "2", "--pgd-attack-max-iter", "9"),
            "pgd_attack_max_iter, epochs must be omitted: not used for an existing model with these attacks and "
            "defenses. Received: pgd_attack_max_iter=9, epochs=2.0",
        ),
        (
            ("--model", "m.keras"),
            "model must be an existing file or a gs:// file. Received: model='m.keras'. Set --model.",
        ),
        (("--shards", "0"), "shards must be a positive integer. Received: shards=0. Set --shards."),
        (
            ("--model", "m", "--data-dir-train", "."),
            "data_dir_train must be omitted: not used for an existing model with these attacks and defenses. "
            "Received: data_dir_train='.'",
        ),
    ],
)
def test_contradictory_options_are_refused(tmp_path, options, message):
    (tmp_path / "images" / "0").mkdir(parents=True)
    result = evasion("run", "evaluation", "--data-dir-test", tmp_path / "images", "--output", tmp_path / "r", *options)
    assert result.exit_code == 2
    assert f"{message}\n" in result.stderr.replace("\n  ", " ")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", [("run", "evaluation", "--data-dir-test", "."), ("compile", "evaluation")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--attacks", "fgn"), "attacks must be among auto_attack, fgm, pgd. Received: fgn"),
        (("--attacks", ""), "attacks must name at least one of auto_attack, fgm, pgd. Received: none"),
        (
            ("--defenses", "jpeg"),
            "defenses must be among gaussian_augmentation, jpeg_compression, spatial_smoothing. Received",
        ),
        (("--attacks", "fgm,fgm"), "attacks must not repeat a name. Received: fgm, fgm"),
    ],
)
def test_unknown_attacks_and_defenses_are_refused(command, options, message):
    result = evasion(*command, *options)
    assert result.exit_code == 2
    assert message in result.stderr
