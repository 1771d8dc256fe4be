"""Where the steps of a pipeline run in a cluster: devices, memory, volumes, MLflow, retries; what compiled YAMLs add.

This is the only module that depends on Kubernetes. With device gpu, steps that run a model run on a node with a GPU,
other steps never do. Two additional `track_run` steps open and finish the pipeline's run in MLflow; a stage that fails
ends that run as FAILED itself, and what killed pods leave open is ended by the first step of the next pipeline. An exit
handler would do so too, but would reduce the graph's first view to two boxes.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from inspect import Parameter, cleandoc, signature
from typing import Any
from urllib.parse import urlsplit

from evasion.components.common import validate
from evasion.components.common.tracking import DEFAULT_EXPERIMENT, IMAGE, KUBEFLOW_RUN
from evasion.components.common.validate import ParameterError
from evasion.components.track_run.task import MLFLOW_LINK
from evasion.pipelines.catalog import Pipeline
from evasion.pipelines.derived import keep_choices

DEVICES = ("cpu", "gpu")

# These steps have a model without attacking or training it: they need no GPU. The second only reads its description.
LOOKUP, LOAD = "load-model", "load-dataset"
# Steps whose results may change under the same name: a folder, a model's newest version, a run's status.
NEVER_CACHED = (LOAD, LOOKUP, "track-run")
MODEL = "system.Model@0.0.1"
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
# Parameters that may be paths of files or folders.
PATHS = {"data_dir", "weights", "name", "class_names"}

# Seconds before a step's second try, and the factor by which each further pause is longer.
PAUSE, PAUSE_FACTOR = 30, 2
UNLIMITED = 30 * 24 * 3600  # seconds for all tries, if a try has no time limit
MOST_SECONDS = 2**31 - 1

# Cores and GiB of steps that do not run a model. None took 300 MiB in `make bench`.
PLAIN_CPUS = 2.0
PLAIN_MEMORY = 2.0

QUEUE = "kueue.x-k8s.io/queue-name"  # Kueue's label
_NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Placement:
    """Resources and settings of the steps in a cluster. Every field is an option of `evasion compile`.

    Raises:
        ValueError: A field is invalid.
    """

    device: str = _option("cpu", "cpu or gpu; with gpu, steps that run a model request GPUs and run on GPU nodes.")
    image: str = _option(
        "", "The steps' image, in a registry that the cluster can reach; blank for the local image of this version."
    )
    gpu_image: str = _option("", "With gpu, the image of steps that run a model; blank for IMAGE-gpu.")
    gpus: int = _option(1, "With gpu, the number of GPUs for `train`; other steps use one each, so shards use more.")
    gpu_type: str = _option("nvidia.com/gpu", "With gpu, the name of the GPU resource in the cluster.")
    gpu_taint: str = _option("nvidia.com/gpu", "With gpu, the taint of GPU nodes that steps tolerate; blank for none.")
    node_selector: tuple[str, ...] = _option(
        ("nvidia.com/gpu.present=true",), "With gpu, a label=value of GPU nodes; can be repeated."
    )
    cpus: float = _option(4.0, "CPU limit in cores of a step that runs a model; a quarter of it is requested.")
    memory: float = _option(16.0, "Memory limit in GiB of a step that runs a model; half of it is requested.")
    dataset_pvc: str = _option(
        "evasion-data", "The volume claim with images and weights, which no step writes to; blank for none."
    )
    dataset_path: str = _option("/data", "The mount path of the volume claim; data_dir is a path below it.")
    mlflow_uri: str = _option("http://mlflow:5000", "MLflow's address in the cluster.")
    mlflow_secret: str = _option(
        "evasion-mlflow",
        "The Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; it need not exist. Blank for none.",
    )
    mlflow_link: str = _option(
        "", "MLflow's address in users' browsers, for links in the dashboard; blank for MLFLOW_URI."
    )
    kubeflow_link: str = _option("", "The dashboard's address in users' browsers, for links in MLflow; blank for none.")
    experiment: str = _option(DEFAULT_EXPERIMENT, "The MLflow experiment; also the prefix of models' names.")
    timeout: int = _option(360, "Time limit in minutes for a try of a step; 0 for none.")
    retries: int = _option(
        2,
        "Number of retries of a step whose pod was deleted or whose node was lost; with Kubeflow's default settings, "
        "a step that exits with an error or runs out of memory is not retried.",
    )

    queue: str = _option("", "The Kueue queue for every step's pod; blank if the cluster has no Kueue.")
    ttl: float = _option(0.0, "Hours after the end of a run until its pods are removed; 0 leaves it to the cluster.")

    def __post_init__(self) -> None:
        validate.one_of("device", self.device, DEVICES)
        validate.positive_integer("gpus", self.gpus)
        for name, value in (("image", self.image), ("gpu_image", self.gpu_image)):
            _require(name, value, r"\S*", "an image's name, or blank")
        if "@" in self.image and self.device == "gpu" and not self.gpu_image:
            raise ParameterError(
                f"gpu_image must be given if image is a digest. Received: image={self.image!r}", "image", "gpu_image"
            )
        _require("gpu_type", self.gpu_type, _LABEL, "a Kubernetes resource such as nvidia.com/gpu")
        _require("gpu_taint", self.gpu_taint, f"({_LABEL})?", "a taint's key, or blank")
        for label in self.node_selector:
            _require("node_selector", label, rf"{_LABEL}=({_LABEL})?", "label=value")
        validate.in_range("cpus", self.cpus, 0.1, 10_000)
        validate.in_range("memory", self.memory, 0.5, 100_000)
        for name, value in (("dataset_pvc", self.dataset_pvc), ("mlflow_secret", self.mlflow_secret)):
            _require(name, value, rf"({_NAME})?", "a Kubernetes name (lowercase letters, digits, - and .), or blank")
        _require("dataset_path", self.dataset_path, r"/[^:\s]+", "an absolute path, not /")
        _require("mlflow_uri", self.mlflow_uri, r"https?://[^\s/]+\S*", "http:// or https:// and a host")
        if urlsplit(self.mlflow_uri).password is not None:
            raise ParameterError(
                "mlflow_uri must not contain a password, which belongs in the Secret. Received: mlflow_uri=…",
                "mlflow_uri",
            )
        for name, value in (("mlflow_link", self.mlflow_link), ("kubeflow_link", self.kubeflow_link)):
            _require(name, value, r"(https?://[^\s/]+\S*)?", "http:// or https:// and a host, or blank")
        validate.required("experiment", self.experiment)
        validate.integer_in("timeout", self.timeout, 0, 2**31 // 60)
        validate.integer_in("retries", self.retries, 0, 100)
        _require("queue", self.queue, rf"({_NAME})?", "the name of a LocalQueue, or blank")
        validate.in_range("ttl", self.ttl, 0, 2**31 / 3600 - 1)


def _require(name: str, value: str, pattern: str, rule: str) -> None:
    if not re.fullmatch(pattern, value):
        raise ParameterError(f"{name} must be {rule}. Received: {name}={value!r}", name)


def options() -> Iterator[tuple[str, Any, str]]:
    """Yield the name, default and description of every field of a placement."""
    for option in fields(Placement):
        yield option.name, option.default, option.metadata["help"]


# Parameters that `place` adds to record the origin of a run.
LINEAGE = {
    "git_commit": "The Git commit of the run, recorded in MLflow; blank for none.",
    "kubeflow_link": "The dashboard's address in users' browsers, for the link in MLflow; blank for none.",
}


def place(pipeline: Pipeline, placement: Placement) -> Pipeline:
    """Return the pipeline with the placement of its steps, named `evasion-…`.

    It has the same parameters and steps, and the parameters `LINEAGE`, which become tags of its run in MLflow.

    Args:
        pipeline: The pipeline, a function decorated with `dsl.pipeline`.
        placement: The placement of its steps.
    """
    from kfp import dsl
    from kfp.dsl import pipeline_context

    from evasion.components.track_run.component import track_run

    name = pipeline.component_spec.name

    @functools.wraps(pipeline.pipeline_func)
    def placed(*values: Any) -> Any:
        *arguments, git_commit, kubeflow_link = values
        tags = {"pipeline": name, "run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
        tasks = pipeline_context.Pipeline.get_default_pipeline().tasks
        opened = track_run(**tags, status="RUNNING", git_commit=git_commit, kubeflow_link=kubeflow_link)
        opened.set_display_name("open the MLflow run")
        result = pipeline.pipeline_func(*arguments)
        own = [task for task in tasks.values() if task is not opened]
        awaited = set[str]().union(*map(_awaited_names, own))
        for task in own:
            if not _awaited_names(task):
                task.after(opened)
        finished = track_run(pipeline=name, status="FINISHED").set_display_name("finish the MLflow run")
        # A task outside a loop cannot wait for a task inside; the task that collects the loop's results is outside.
        finished.after(*(task for task in own if task.name not in awaited and not _in_loop(task)))
        for task in tasks.values():
            if task.container_spec is not None:  # an importer has none
                _place(task, placement)
        return result

    _declare_lineage(placed, pipeline, placement)
    ttl = math.ceil(3600 * placement.ttl) or None
    config = dsl.PipelineConfig(ttl_seconds_after_finished=ttl) if ttl else None
    # The prefix distinguishes pipelines from steps: some have the same name, and kfp would take such a pipeline for the
    # step when it loads the YAML as a component.
    compiled = dsl.pipeline(name=f"evasion-{name}", description=pipeline.description, pipeline_config=config)(placed)
    keep_choices(pipeline, compiled)
    return compiled


def _declare_lineage(placed: Any, pipeline: Pipeline, placement: Placement) -> None:
    """Set the signature and the docstring of a placed pipeline: those of the pipeline, and `LINEAGE`."""
    original = signature(pipeline.pipeline_func)
    defaults = {"git_commit": "", "kubeflow_link": placement.kubeflow_link}
    added = [
        Parameter(parameter, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=str)
        for parameter, default in defaults.items()
    ]
    placed.__signature__ = original.replace(parameters=[*original.parameters.values(), *added])
    # The arguments come last in a docstring.
    docstring = [cleandoc(pipeline.pipeline_func.__doc__ or "")]
    docstring += [f"    {parameter}: {text}" for parameter, text in LINEAGE.items()]
    placed.__doc__ = "\n".join(docstring)


def _awaited_names(task: Any) -> set[str]:
    """Return the names of the tasks and task groups that a task waits for."""
    return {channel.task_name for channel in task.channel_inputs if channel.task_name} | set(task.dependent_tasks)


def _in_loop(task: Any) -> bool:
    return bool(task.parent_task_group.group_type == "for-loop")


def _has_model(task: Any) -> bool:
    """Return whether a step holds a model in memory: it has one as input or output, and not only for its size."""
    spec = task.component_spec
    types = {declared.type for declared in [*(spec.inputs or {}).values(), *(spec.outputs or {}).values()]}
    return MODEL in types and spec.name != LOAD


def _place(task: Any, placement: Placement) -> None:
    """Apply a placement to a step."""
    from kfp import kubernetes

    from evasion.components.step import IMAGE as STAGE_IMAGE

    model = _has_model(task)
    gpu = model and task.component_spec.name != LOOKUP and placement.device == "gpu"
    image = placement.image or STAGE_IMAGE
    image = (placement.gpu_image or f"{image}-gpu") if gpu else image
    task.set_container_image(image)

    cpus, memory = (placement.cpus, placement.memory) if model else (PLAIN_CPUS, PLAIN_MEMORY)
    task.set_cpu_request(f"{cpus / 4:g}").set_cpu_limit(f"{cpus:g}")
    task.set_memory_request(_mebibytes(memory / 2)).set_memory_limit(_mebibytes(memory))
    if gpu:
        # Constants: older backends ignore a limit that is a parameter of the pipeline.
        gpus = placement.gpus if task.component_spec.name == "train" else 1
        task.set_accelerator_type(placement.gpu_type).set_accelerator_limit(gpus)
        if placement.gpu_taint:
            kubernetes.add_toleration(task, key=placement.gpu_taint, operator="Exists", effect="NoSchedule")
        for label in placement.node_selector:
            kubernetes.add_node_selector(task, *label.split("=", 1))

    if placement.dataset_pvc and PATHS & (task.component_spec.inputs or {}).keys():
        kubernetes.mount_pvc(task, placement.dataset_pvc, placement.dataset_path)

    task.set_env_variable("MLFLOW_TRACKING_URI", placement.mlflow_uri)
    task.set_env_variable("MLFLOW_EXPERIMENT_NAME", placement.experiment)
    task.set_env_variable(IMAGE, image)
    if placement.mlflow_link:
        task.set_env_variable(MLFLOW_LINK, placement.mlflow_link)
    if placement.mlflow_secret:
        kubernetes.use_secret_as_env(task, placement.mlflow_secret, {key: key for key in CREDENTIALS}, optional=True)
    kubernetes.use_field_path_as_env(task, KUBEFLOW_RUN, "metadata.labels['pipeline/runid']")

    if placement.queue:
        kubernetes.add_pod_label(task, label_key=QUEUE, label_value=placement.queue)

    task.set_caching_options(task.component_spec.name not in NEVER_CACHED)
    if placement.timeout:
        kubernetes.set_timeout(task, 60 * placement.timeout)
    if placement.retries:
        task.set_retry(
            placement.retries,
            backoff_duration=f"{PAUSE}s",
            backoff_factor=PAUSE_FACTOR,
            backoff_max_duration=f"{_retry_period(placement)}s",
        )


def _retry_period(placement: Placement) -> int:
    """Return the seconds after the start of the first try when Argo stops retrying: enough for all retries."""
    if not placement.timeout:
        return UNLIMITED
    pauses: int = sum(PAUSE * PAUSE_FACTOR**number for number in range(placement.retries))
    return min(60 * placement.timeout * (placement.retries + 1) + pauses, MOST_SECONDS)


def _mebibytes(gibibytes: float) -> str:
    return f"{round(1024 * gibibytes)}Mi"
