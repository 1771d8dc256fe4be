"""What users of the compiled pipelines see: the seed's parameters, declared once, documented, with one default."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml
from kfp import compiler

from evasion.pipelines import stages
from evasion.pipelines.catalog import pipelines
from evasion.pipelines.inputs import with_datasets

COMPONENTS = Path(importlib.import_module("evasion.components").__path__[0])
STEPS = sorted(folder.parent.name for folder in COMPONENTS.glob("*/component.py"))

# Every parameter of every entry point in the original's document.
FROM_RUN = ["load_dataset_from_mlruns", "dataset_run_id", "dataset_tar_name", "dataset_name"]
SEED = {
    "init_model": ["data_dir", "model_tag", "model_architecture", "batch_size", "seed"],
    "infer": ["run_id", "model", "model_architecture", "batch_size", "seed", "dataset_tar_name", "dataset_name"],
    "train": [
        "model_tag",
        "data_dir_train",
        "data_dir_test",
        "model_architecture",
        "epochs",
        "batch_size",
        "register_model",
        "learning_rate",
        "optimizer",
        "validation_split",
        "load_dataset_from_mlruns",
        "training_dataset_run_id",
        "dataset_tar_name",
        "dataset_name",
        "apply_defense",
        "seed",
    ],
    "fgm": ["data_dir", "model", "model_architecture", "batch_size", "eps", "eps_step", "minimal", "norm", "seed"],
    "spatial_smoothing": [
        "data_dir",
        "model",
        "model_architecture",
        "batch_size",
        "spatial_smoothing_window_size",
        "spatial_smoothing_apply_fit",
        "spatial_smoothing_apply_predict",
        *FROM_RUN,
        "seed",
    ],
    "jpeg_compression": [
        "data_dir",
        "model",
        "model_architecture",
        "batch_size",
        "jpeg_compression_channels_first",
        "jpeg_compression_quality",
        "jpeg_compression_apply_fit",
        "jpeg_compression_apply_predict",
        *FROM_RUN,
        "seed",
    ],
    "gaussian_augmentation": [
        "data_dir",
        "model",
        "model_architecture",
        "batch_size",
        "gaussian_augmentation_perform_data_augmentation",
        "gaussian_augmentation_ratio",
        "gaussian_augmentation_sigma",
        "gaussian_augmentation_apply_fit",
        "gaussian_augmentation_apply_predict",
        *FROM_RUN,
        "seed",
    ],
}
# What the pipelines have beyond it: weights from a mirror, PGD's own parameters, what `data_dir` holds, how images are
# resized, and how to use a model that others made.
RESIZING = ["interpolation", "crop_to_aspect_ratio", "pad_to_aspect_ratio"]
OF_MODEL = ["model_sha256", "input_range", "image_size", "class_names", "model_package", *RESIZING]
ADDED = {
    "init_model": ["weights", "weights_sha256", *RESIZING],
    "train": ["eps", "eps_step", "max_iter", "weights", "weights_sha256", *RESIZING],
    "infer": OF_MODEL,
    "fgm": OF_MODEL,
    "spatial_smoothing": ["dataset_split", *OF_MODEL],
    "jpeg_compression": ["dataset_split", *OF_MODEL],
    "gaussian_augmentation": ["dataset_split", *OF_MODEL],
}


def step(name):
    return getattr(importlib.import_module(f"evasion.components.{name}.component"), name)


def task(name):
    return getattr(importlib.import_module(f"evasion.components.{name}.task"), name)


@pytest.mark.parametrize("name", SEED)
def test_entry_points_have_the_seeds_parameters(name):
    inputs = pipelines()[name].component_spec.inputs
    assert sorted(inputs) == sorted(SEED[name] + ADDED.get(name, []))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_and_its_task_have_the_same_parameters(name):
    """The names are declared in the step; the task takes them keyword-only, without defaults of its own."""
    parameters = inspect.signature(task(name)).parameters
    assert all(one.kind is one.KEYWORD_ONLY and one.default is one.empty for one in parameters.values())
    declared = set(step(name).component_spec.inputs or {}) | set(step(name).component_spec.outputs or {})
    # These are Kubeflow's: results that the step fills in from what the task returns.
    declared -= {"metrics", "confusion_matrix", "Output"}
    # Kubeflow has no list of artifacts from several steps: it numbers what the task takes as one.
    if numbers := {one for one in declared if re.fullmatch(r"report_\d+", one)}:
        declared = declared - numbers | {"reports"}
    # Datasets that a pipeline's own form of the step has beside `dataset`.
    assert set(parameters) - {"others"} == declared


@pytest.mark.parametrize("name", STEPS)
def test_every_rule_speaks_of_a_parameter_of_its_step(name):
    check = importlib.import_module(f"evasion.components.{name}.task").check
    ruled = {one.name for one in inspect.signature(check).parameters.values() if one.kind is one.KEYWORD_ONLY}
    assert ruled <= set(step(name).component_spec.inputs)


@pytest.mark.parametrize("name", pipelines())
def test_fault_a_default_is_declared_once(name):
    """The original declared eps twice, with different defaults: here a pipeline's default is its step's."""
    pipeline = pipelines()[name]
    spec = pipeline.pipeline_spec
    for task_spec in spec.root.dag.tasks.values():
        component = spec.components[task_spec.component_ref.name]
        executor = component.executor_label.removeprefix("exec-").replace("-", "_").rstrip("_0123456789")
        if executor not in STEPS:
            continue
        for parameter, source in task_spec.inputs.parameters.items():
            if parameter.startswith("pipelinechannel--"):  # a part of another parameter's text
                continue
            outer = pipeline.component_spec.inputs.get(source.component_input_parameter)
            inner = step(executor).component_spec.inputs[parameter]
            if outer is not None and outer.optional and inner.optional:
                exceptions = {("infer", "dataset_tar_name"), ("infer", "dataset_name")}  # what `fgm` logs
                # Blank for a dataset of a model; otherwise it is that of the step that builds the model.
                of_model = (executor, parameter) == ("load_dataset", "model_architecture")
                if (name, source.component_input_parameter) not in exceptions and not of_model:
                    declared = defaults_in_evaluation(executor) if name.startswith("evaluation") else {}
                    assert outer.default == declared.get(parameter, inner.default), (executor, parameter)


def defaults_in_evaluation(name):
    module = importlib.import_module(f"evasion.components.{name}.component")
    return getattr(module, "DEFAULTS_IN_EVALUATION", {})


def test_an_evaluation_has_defaults_of_its_own_for_what_suits_a_laptop():
    assert defaults_in_evaluation("auto_attack") == {"budget": "light"}
    assert pipelines()["auto_attack"].component_spec.inputs["budget"].default == "standard"
    inputs = pipelines()["evaluation_trained"].component_spec.inputs
    assert inputs["auto_attack_budget"].default == "light"
    assert inputs["auto_attack_max_iter"].default == 0


@pytest.mark.parametrize("name", pipelines())
def test_docstrings_reach_the_compiled_yaml(name, tmp_path):
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipelines()[name], str(path))
    spec = yaml.safe_load(path.read_text())
    assert spec["pipelineInfo"]["description"]
    for parameter in spec["root"]["inputDefinitions"]["parameters"].values():
        assert parameter["description"]
    for component in spec["components"].values():
        if "dag" in component or component["executorLabel"].startswith("exec-importer"):
            continue
        definitions = component.get("inputDefinitions", {})
        for kind in ("parameters", "artifacts"):
            assert all(one.get("description") for one in definitions.get(kind, {}).values())


def test_attacks_and_defenses_are_recognized_by_their_outputs():
    assert set(stages.attacks()) >= {"fgm", "pgd", "auto_attack"}
    assert set(stages.defenses()) >= {"spatial_smoothing", "jpeg_compression", "gaussian_augmentation"}
    assert not {*stages.attacks()} & {*stages.defenses()}
    assert stages.default_steps(stages.attacks()) == ["fgm", "auto_attack"]
    assert stages.default_steps(stages.defenses()) == ["spatial_smoothing", "jpeg_compression", "gaussian_augmentation"]


@pytest.mark.parametrize("name", ["infer", *stages.defenses()])
def test_a_step_takes_as_many_datasets_as_a_pipeline_passes_to_it(name):
    single, three = step(name), with_datasets(step(name), 3)
    assert with_datasets(single, 1) is single
    added = {"dataset_2", "dataset_3"}
    assert set(three.component_spec.inputs) - added == set(single.component_spec.inputs)
    assert all(three.component_spec.inputs[dataset].optional for dataset in added)
    assert three.component_spec.outputs == single.component_spec.outputs
    returned = [inspect.signature(component.python_func).return_annotation for component in (single, three)]
    assert returned[0] == returned[1]


def test_a_new_defense_needs_no_change_in_the_report():
    """The report reads from the data's provenance what was done to it; its inputs name neither attack nor defense."""
    inputs = step("report").component_spec.inputs
    assert not any(other in name for name in inputs for other in (*stages.attacks(), *stages.defenses()))
