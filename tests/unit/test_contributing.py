"""The examples of CONTRIBUTING do what the text says: a step is a folder, and no other file is changed by hand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import arts
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# The source of each file that the text shows, by its path.
FILES = {
    path: re.sub(r"(?m)^   ", "", source)
    for path, source in re.findall(r"\n\d\. `(components/\S+\.py)`:.*?\n   ```python\n(.*?)   ```", TEXT, re.DOTALL)
}
EVASION = [sys.executable, "-c", "from evasion.pipelines.cli.main import main; main(prog_name='evasion')"]


def test_the_examples_are_whole_steps():
    assert set(FILES) == {
        f"components/{name}/{file}.py" for name in ("bit_depth", "momentum") for file in ("task", "component")
    }


def test_the_examples_are_written_as_the_rest(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    write(tmp_path)
    ruff = [Path(sys.executable).with_name("ruff")]
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        result = subprocess.run([*ruff, *command, tmp_path], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def write(folder):
    """Do what the text says."""
    for path, source in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(source, encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the package with the folders of the examples, and nothing else changed; runs commands of it."""
    folder = tmp_path_factory.mktemp("project") / "evasion"
    for name in ("components", "pipelines"):
        ignored = shutil.ignore_patterns("__pycache__", "compiled")
        if name == "components":
            ignored = shutil.ignore_patterns("__pycache__", "component.yaml")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    write(folder)

    def run(*command, code=0):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "KFP_"))}
        environment |= {"PYTHONPATH": str(folder.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(
            list(map(str, command)), cwd=folder.parent, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout

    where = run(sys.executable, "-c", "import evasion.components, evasion.pipelines as p; print(p.__path__[0])")
    assert where.strip() == str(folder / "pipelines")
    return run


def test_the_new_steps_have_pipelines_and_options(project):
    listed = dict(line.split(maxsplit=1) for line in project(*EVASION, "list").splitlines())
    assert listed["bit_depth"] == "Round every image to fewer grey levels (Xu et al. 2018, arXiv:1704.01155)."
    assert listed["momentum"].startswith("Attack a packed dataset with the Momentum Iterative Method")
    shown = " ".join(project(*EVASION, "run", "evaluation", "--help").split())
    assert (
        "--attacks NAME,… The attacks to run, among auto_attack, fgm, momentum, pgd. [default: fgm, auto_attack]"
        in shown
    )
    assert "among bit_depth, gaussian_augmentation, jpeg_compression, spatial_smoothing." in shown
    assert "--bit-depth-bits INTEGER For bit_depth: of a channel of a pixel, from 1 to 8. [default: 4]" in shown
    assert "--momentum-decay FLOAT For momentum: weight of the gradients before, from 0 to 1. [default: 1.0]" in shown
    assert "--momentum-max-iter INTEGER" in shown
    alone = project(*EVASION, "run", "bit-depth", "--help")
    assert "--bit-depth-bits" in alone
    assert "--dataset-run-id" in alone


def test_the_new_steps_compile(project, tmp_path):
    project(*EVASION, "compile", "momentum", "bit_depth", "--output", tmp_path)
    chosen = ("--attacks", "fgm,momentum", "--defenses", "bit_depth")
    project(*EVASION, "compile", "evaluation", *chosen, "--output", tmp_path)
    project(*EVASION, "compile", "all", "--steps", "--output", tmp_path / "steps")
    spec, _ = yaml.safe_load_all((tmp_path / "evaluation_registered.yaml").read_text())
    tasks = spec["root"]["dag"]["tasks"]
    assert {"fgm", "momentum", "bit-depth", "infer"} <= set(tasks)
    known = tasks["momentum"]["inputs"]["parameters"]["defenses"]["runtimeValue"]["constant"]
    assert re.fullmatch(r'\{ "bit_depth": \{ "bits": "\{\{\$\.inputs\.parameters\[.*bits.*\]\}\}" \} \}', known)
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["bit_depth_bits"]["defaultValue"] == 4
    assert parameters["momentum_max_iter"]["defaultValue"] == 10
    for name in ("momentum", "bit_depth"):
        assert (tmp_path / f"{name}.yaml").is_file()
        assert (tmp_path / "steps" / name / "component.yaml").is_file()


def test_a_value_that_breaks_a_rule_of_the_new_defense_is_refused(project, tmp_path):
    (tmp_path / "0").mkdir()
    given = ("--data-dir-test", tmp_path, "--model", "m", "--model-architecture", "le_net", "--defenses", "bit_depth")
    project(*EVASION, "run", "evaluation", *given, "--bit-depth-bits", 9, "--output", tmp_path / "runs", code=2)


@pytest.mark.slow
def test_the_tests_of_every_step_hold_for_the_new_ones(project):
    tested = project(
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rN", "--verbose"),
        ROOT / "tests/unit/test_interface.py",
    )
    for name in ("bit_depth", "momentum"):
        assert f"test_a_step_and_its_task_have_the_same_parameters[{name}] PASSED" in tested


@pytest.mark.slow
def test_the_new_steps_work_in_an_evaluation(project, tmp_path, mnist):
    project(
        *(*EVASION, "run", "evaluation", "--quiet", "--output", tmp_path),
        *("--data-dir-train", mnist / "training", "--data-dir-test", mnist / "testing"),
        *("--model-architecture", "le_net", "--epochs", "2.5", "--batch-size", "32", "--seed", "1"),
        *("--eps", "0.1", "--eps-values", "0.1", "--attacks", "fgm,momentum", "--momentum-max-iter", "4"),
        *("--defenses", "bit_depth", "--bit-depth-bits", "1"),
    )
    (summary,) = tmp_path.glob("*/report.json")
    table = json.loads(summary.read_text())["table"]
    assert [(row["attack"]["name"], row["defense"]["name"], row["defense"]["settings"]) for row in table] == [
        ("worst case of fgm and momentum", "none", ""),
        ("worst case of fgm and momentum", "bit_depth", "bits=1"),
        ("fgm", "none", ""),
        ("fgm", "bit_depth", "bits=1"),
        ("momentum", "none", ""),
        ("momentum", "bit_depth", "bits=1"),
    ]
    accuracy = {
        (row["attack"]["name"], row["defense"]["name"]): row["judged"]["robust_accuracy"]["value"] for row in table
    }
    assert accuracy["momentum", "none"] <= accuracy["fgm", "none"] < table[0]["clean_accuracy"]["value"]
    for row in table[1::2]:
        assert set(row["attackers"]) == {"oblivious", "defense-aware"}


def test_the_defense_of_the_example_works(tmp_path, digits_tar, mlflow_store):
    from evasion.components.common.data.dataset import Dataset

    module = {"__name__": "bit_depth"}
    exec(FILES["components/bit_depth/task.py"], module)
    module["bit_depth"](
        dataset=digits_tar,
        others=[],
        defended=tmp_path / "defended",
        bits=2,
        apply_fit=False,
        apply_predict=True,
        seed=1,
    )
    with Dataset(tmp_path / "defended") as defended:
        levels = {int(level) for sample in defended.samples() for level in np.unique(sample.pixels)}
    assert levels <= {0, 85, 170, 255}
    assert len(levels) > 1


def test_the_attack_of_the_example_works(tmp_path, digits_tar, le_net, le_net_artifact, mlflow_store):
    """Without momentum it is the iterative method, which ART has."""
    from evasion.components.common.data.dataset import Dataset
    from evasion.components.common.data.pixels import to_float, towards
    from evasion.components.common.models.classifier import Classifier

    def pixels(tar):
        with Dataset(tar) as dataset:
            return np.stack([sample.pixels for sample in dataset.samples()])

    def attacked(decay):
        made = tmp_path / f"with decay {decay}"
        settings = {"batch_size": 80, "eps": 24 / 255, "decay": decay, "max_iter": 4, "eot_samples": 1, "seed": 1}
        module["momentum"](dataset=digits_tar, model=le_net_artifact, adversarial=made, defenses="", **settings)
        return pixels(made)

    module = {"__name__": "momentum"}
    exec(FILES["components/momentum/task.py"], module)
    x = to_float(pixels(digits_tar))
    classifier = Classifier(le_net)
    predicted = classifier.outputs(x).argmax(axis=1)
    iterative = arts.projected_gradient_descent(
        le_net, norm="inf", eps=24 / 255, eps_step=6 / 255, max_iter=4, batch_size=80
    )
    theirs = towards(iterative.generate(x), pixels(digits_tar))
    assert (attacked(0.0) == theirs).mean() > 0.999
    ours = attacked(1.0)
    assert np.abs(ours.astype(int) - pixels(digits_tar)).max() == 24
    assert (ours != theirs).mean() > 0.01
    assert (classifier.outputs(to_float(ours)).argmax(axis=1) != predicted).mean() > 0.3
