"""The contents of the images."""

import json
from importlib.metadata import version

import pytest

from evasion.pipelines.local import containers

TARGETS = ("cpu", "mlflow", "postgres")


@pytest.mark.parametrize("target", TARGETS)
def test_labels_and_user(engine, target):
    config = engine.images.get(containers.image(target)).attrs["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["version"] == version("evasion-pipelines")
    assert labels["licenses"] == ("PostgreSQL" if target == "postgres" else "Apache-2.0")
    assert len(labels["revision"]) == 40
    assert labels.keys() == {"title", "description", "vendor", "licenses", "version", "revision"}
    assert config["User"] == "65532:65532"


def test_the_cpu_image_is_smaller_than_two_gigabytes(engine):
    assert engine.images.get(containers.image("cpu")).attrs["Size"] < 2.0e9


PROGRAMS = """
import json, os
print(json.dumps(sorted({
    file for folder in ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")
    if os.path.isdir(folder) for file in os.listdir(folder)
})))
"""


@pytest.mark.parametrize("target", ["cpu", "mlflow"])
def test_only_programs_that_start_a_step_are_installed(python, target):
    programs = set(json.loads(python(PROGRAMS, target)))
    assert {name for name in programs if not name.startswith("python3")} == {"sh", "dash", "mktemp"}


COMPILED = """
import pathlib
for source in pathlib.Path("/opt/evasion").rglob("*.py"):
    if not list((source.parent / "__pycache__").glob(source.stem + ".cpython-*.pyc")):
        print(source)
"""


@pytest.mark.parametrize("target", ["cpu", "mlflow"])
def test_bytecode_is_compiled(python, target):
    # Templates and files for other versions of Python have no bytecode.
    missing = python(COMPILED, target).split()
    assert not [path for path in missing if "/evasion/components/" in path or "/evasion/pipelines/" in path]
    assert len(missing) < 20, missing


IMPORTS = """
import os; os.environ["_KFP_RUNTIME"] = "true"
import kfp.dsl.executor_main, mlflow.tensorflow, art.attacks.evasion, art.estimators.classification
import evasion.components.report.task
from importlib.metadata import distributions
print(*sorted(one.name for one in distributions()))
"""


def test_only_the_packages_that_steps_import_are_installed(python):
    installed = python(IMPORTS, tmpfs={"/tmp": ""}).splitlines()[-1].split()
    assert {"kfp", "mlflow-skinny", "tensorflow_cpu", "evasion-pipelines"} <= set(installed)
    assert not {"mlflow", "kubernetes", "kfp-pipeline-spec", "docker", "pip", "pyarrow"} & set(installed)


def test_the_tracking_server_has_its_drivers(python):
    code = "import psycopg, boto3, google.cloud.storage, mlflow.server; print(psycopg.pq.__impl__)"
    assert python(code, "mlflow", tmpfs={"/tmp": ""}).split()[-1] == "binary"


def test_nothing_of_the_build_is_in_a_layer(engine, python):
    history = engine.images.get(containers.image("cpu")).history()
    assert not [layer for layer in history if "pip.conf" in layer["CreatedBy"]]
    assert python("import os; print(os.path.exists('/etc/pip.conf'))").strip() == "False"


def test_mlflow_draws_no_progress_bars_in_a_steps_log(python):
    code = "import mlflow.environment_variables as known; print(known.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.get())"
    assert python(code, tmpfs={"/tmp": ""}).split()[-1] == "False"
