"""The entry points of the original demo as pipelines, with its parameter names, and one for each further attack.

They are chained through MLflow: a stage logs its tar as `<stage>.tar`, and the next pipeline reads a dataset from it by
`run_id` (of the pipeline or of the stage), `dataset_tar_name` and `dataset_name`, which is `<stage>` here and one of
several in an evaluation (`<stage>_aware_of_<defense>`, `<defense>_of_<dataset>`). Models are files, or named as MLflow
names them. Parameters that the original does not have: those that say how to use a model that others made and how to
resize images (see the steps `load_model` and `load_dataset`), `weights` and `weights_sha256` (a mirrored file instead
of a download), `eps`, `eps_step`, `max_iter` of `train` (its PGD), and `dataset_split` of the defenses (whether
`data_dir` holds training or test data, to which `apply_fit` and `apply_predict` refer).

    evasion run train --data-dir-train data/mnist/training --data-dir-test data/mnist/testing
    evasion run fgm --data-dir data/mnist/testing --model evasion_le_net
"""

import inspect
from collections.abc import Mapping
from typing import Any

from evasion.components.infer.component import infer as infer_step
from evasion.components.init_model.component import init_model as init_model_step
from evasion.components.load_dataset.component import load_dataset
from evasion.components.load_model.component import load_model
from evasion.components.train.component import train as train_step
from evasion.pipelines import derived, stages
from evasion.pipelines.derived import REQUIRED, Parameter, parameter_of

Values = Mapping[str, Any]

SEED = "Random seed from 0 to 4294967295; -1 draws one and records it."
FOLDER = "a folder with one subfolder per class, local or gs://"
_BATCH_SIZE = parameter_of(infer_step, "batch_size")
_FROM_MLRUNS = [
    parameter_of(load_dataset, name)
    for name in ("load_dataset_from_mlruns", "dataset_run_id", "dataset_tar_name", "dataset_name")
]


def pipelines() -> dict[str, Any]:
    """Return the pipelines by name."""
    return {
        "init_model": init_model(),
        "train": train(),
        "infer": infer(),
        **{name: attack(name, step) for name, step in stages.attacks().items()},
        **{name: defense(name, step) for name, step in stages.defenses().items()},
    }


def init_model() -> Any:
    """Return the pipeline `init_model`."""
    test_data = "Test set: a folder with one subfolder per class, named by WordNet id (n01440764 …), local or gs://."

    def wire(values: Values) -> None:
        data = load_dataset(data_dir=values["data_dir"], **_images(values))
        model = init_model_step(**_arguments(init_model_step, values))
        infer_step(dataset=data.outputs["dataset"], model=model.outputs["model"], **_arguments(infer_step, values))

    parameters = [
        parameter_of(load_dataset, "data_dir", default=REQUIRED, text=test_data),
        *_step_parameters(init_model_step),
        _BATCH_SIZE,
    ]
    text = "Load a pretrained ImageNet model into MLflow and evaluate it on a test set."
    return derived.pipeline("init_model", text, parameters, wire)


def train() -> Any:
    """Return the pipeline `train`."""

    def wire(values: Values) -> None:
        training = load_dataset(
            data_dir=values["data_dir_train"],
            **_images(values),
            split="training",
            load_dataset_from_mlruns=values["load_dataset_from_mlruns"],
            dataset_run_id=values["training_dataset_run_id"],
            dataset_tar_name=values["dataset_tar_name"],
            dataset_name=values["dataset_name"],
        ).set_display_name("load_dataset training")
        testing = load_dataset(data_dir=values["data_dir_test"], **_images(values))
        testing.set_display_name("load_dataset testing")
        model = train_step(dataset=training.outputs["dataset"], **_arguments(train_step, values)).after(testing)
        infer_step(dataset=testing.outputs["dataset"], model=model.outputs["model"], **_arguments(infer_step, values))

    training_data = f"Training set: {FOLDER}; required unless load_dataset_from_mlruns is true."
    parameters = [
        parameter_of(load_dataset, "data_dir", "data_dir_test", default=REQUIRED, text=f"Test set: {FOLDER}."),
        parameter_of(load_dataset, "data_dir", "data_dir_train", text=training_data),
        *_step_parameters(train_step, seed=SEED),
        *(parameter_of(load_dataset, name, text=stages.SHARED[name]) for name in stages.RESIZING),
        parameter_of(
            load_dataset, "load_dataset_from_mlruns", text="Whether to train on a dataset of an MLflow run instead."
        ),
        parameter_of(load_dataset, "dataset_run_id", "training_dataset_run_id"),
        parameter_of(load_dataset, "dataset_tar_name"),
        parameter_of(load_dataset, "dataset_name"),
    ]
    return derived.pipeline("train", "Train a model and evaluate it on a test set.", parameters, wire)


def infer() -> Any:
    """Return the pipeline `infer`."""

    def wire(values: Values) -> None:
        loaded = _loaded_model(values)
        data = load_dataset(
            model=loaded,
            load_dataset_from_mlruns=True,
            dataset_run_id=values["run_id"],
            dataset_tar_name=values["dataset_tar_name"],
            dataset_name=values["dataset_name"],
        )
        infer_step(dataset=data.outputs["dataset"], model=loaded, **_arguments(infer_step, values))

    parameters = [
        parameter_of(load_dataset, "dataset_run_id", "run_id", default=REQUIRED),
        *_model_parameters(),
        *_step_parameters(infer_step),
        parameter_of(load_dataset, "dataset_tar_name", default="fgm.tar"),
        parameter_of(load_dataset, "dataset_name", default="fgm"),
    ]
    text = "Evaluate a model on a dataset from another MLflow run."
    return derived.pipeline("infer", text, parameters, wire)


def attack(name: str, step: Any) -> Any:
    """Return the pipeline of an attack on an undefended model, named after the attack."""

    def wire(values: Values) -> None:
        loaded = _loaded_model(values)
        data = load_dataset(data_dir=values["data_dir"], model=loaded)
        attacked = step(dataset=data.outputs["dataset"], model=loaded, **_arguments(step, values))
        infer_step(dataset=attacked.outputs["adversarial"], model=loaded, **_arguments(infer_step, values))

    parameters = [
        parameter_of(load_dataset, "data_dir", default=REQUIRED, text=f"The images: {FOLDER}."),
        *_model_parameters(),
        # A defense-aware attacker needs a defense, which only the evaluation has.
        *(
            parameter
            for parameter in _step_parameters(step, seed=SEED)
            if parameter.name not in ("defenses", "eot_samples")
        ),
    ]
    text = f"{_summary(step)}\n\nThe model is evaluated on the attacked images."
    return derived.pipeline(name, text, parameters, wire)


def defense(name: str, step: Any) -> Any:
    """Return the pipeline of a defense, named after the defense; the defense's name prefixes its parameters."""
    own = {parameter: f"{name}_{parameter}" for parameter in stages.parameter_names(step) if parameter != "seed"}

    def wire(values: Values) -> None:
        loaded = _loaded_model(values)
        data = load_dataset(
            data_dir=values["data_dir"],
            model=loaded,
            split=values["dataset_split"],
            **{parameter.name: values[parameter.name] for parameter in _FROM_MLRUNS},
        )
        settings = {parameter: values[prefixed] for parameter, prefixed in own.items()}
        defended = step(dataset=data.outputs["dataset"], **settings, seed=values["seed"])
        # As the original's defenses do.
        infer_step(dataset=defended.outputs["defended"], model=loaded, **_arguments(infer_step, values))

    parameters = [
        *_model_parameters(),
        parameter_of(load_dataset, "data_dir", text=f"The images: {FOLDER}; not with load_dataset_from_mlruns."),
        _BATCH_SIZE,
        *(parameter_of(step, parameter, prefixed) for parameter, prefixed in own.items()),
        *_FROM_MLRUNS,
        parameter_of(load_dataset, "split", "dataset_split"),
        parameter_of(step, "seed", text=SEED),
    ]
    text = f"{_summary(step)}\n\nA model is evaluated on the result."
    return derived.pipeline(name, text, parameters, wire)


def _model_parameters() -> list[Parameter]:
    return [
        parameter_of(load_model, name, stages.OF_MODEL.get(name, "")) for name in stages.parameter_names(load_model)
    ]


def _loaded_model(values: Values) -> Any:
    """Create the task that loads an existing model; return the model."""
    arguments = {name: values[stages.OF_MODEL.get(name, name)] for name in stages.parameter_names(load_model)}
    return load_model(**arguments).outputs["model"]


def _images(values: Values) -> dict[str, Any]:
    """Return the arguments of `load_dataset` for images of an architecture."""
    return {name: values[name] for name in ("model_architecture", *stages.RESIZING)}


def _step_parameters(step: Any, **texts: str) -> list[Parameter]:
    """Return a pipeline's parameters for all parameters of a step, under the same names."""
    return [parameter_of(step, name, text=texts.get(name, "")) for name in stages.parameter_names(step)]


def _arguments(step: Any, values: Values) -> dict[str, Any]:
    """Return the values whose names are parameters of a step."""
    return {name: values[name] for name in stages.parameter_names(step) if name in values}


def _summary(step: Any) -> str:
    return inspect.cleandoc(step.python_func.__doc__).partition("\n\n")[0]
