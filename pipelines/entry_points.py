"""The entry points of the original demo as pipelines, with its parameter names, and one for each further attack.

They are chained through MLflow: a stage logs its tar as `<stage>.tar`, and the next pipeline takes a dataset of it by
`run_id` (of the pipeline or of the stage), `dataset_tar_name` and `dataset_name`, which is `<stage>` here and one of
several in an evaluation (`<stage>_aware_of_<defense>`, `<defense>_of_<dataset>`); models go by their registered names.
Parameters that the original does not have: `weights` and `weights_sha256` (a mirrored file in place of a download),
`eps`, `eps_step`, `max_iter` of `train` (its PGD), and `dataset_split` of the defenses (whether `data_dir` is training
or testing data, of which `apply_fit` and `apply_predict` speak).

    evasion run train --data-dir-train data/mnist/training --data-dir-test data/mnist/testing
    evasion run fgm --data-dir data/mnist/testing --model evasion_le_net --model-architecture le_net
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
from evasion.pipelines.derived import REQUIRED, Parameter, of

Given = Mapping[str, Any]

SEED = "From 0 to 4294967295; -1 draws one and records it."
FOLDER = "a folder of one folder a class, local or gs://"
_BATCH_SIZE = of(infer_step, "batch_size")
_FROM_MLRUNS = [
    of(load_dataset, name)
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
    test_data = "Test set, a folder of one folder a class named by WordNet id (n01440764 …), local or gs://."

    def wire(given: Given) -> None:
        data = load_dataset(data_dir=given["data_dir"], model_architecture=given["model_architecture"])
        model = init_model_step(**_of(init_model_step, given))
        infer_step(dataset=data.outputs["dataset"], model=model.outputs["model"], **_of(infer_step, given))

    parameters = [
        of(load_dataset, "data_dir", default=REQUIRED, text=test_data),
        *_all(init_model_step),
        _BATCH_SIZE,
    ]
    text = "Load a pretrained ImageNet model into MLflow and evaluate it on a test set."
    return derived.pipeline("init_model", text, parameters, wire)


def train() -> Any:
    """Return the pipeline `train`."""

    def wire(given: Given) -> None:
        training = load_dataset(
            data_dir=given["data_dir_train"],
            model_architecture=given["model_architecture"],
            split="training",
            load_dataset_from_mlruns=given["load_dataset_from_mlruns"],
            dataset_run_id=given["training_dataset_run_id"],
            dataset_tar_name=given["dataset_tar_name"],
            dataset_name=given["dataset_name"],
        ).set_display_name("load_dataset training")
        testing = load_dataset(data_dir=given["data_dir_test"], model_architecture=given["model_architecture"])
        testing.set_display_name("load_dataset testing")
        model = train_step(dataset=training.outputs["dataset"], **_of(train_step, given)).after(testing)
        infer_step(dataset=testing.outputs["dataset"], model=model.outputs["model"], **_of(infer_step, given))

    training_data = f"Training set, {FOLDER}; needed unless load_dataset_from_mlruns is true."
    parameters = [
        of(load_dataset, "data_dir", "data_dir_test", default=REQUIRED, text=f"Test set, {FOLDER}."),
        of(load_dataset, "data_dir", "data_dir_train", text=training_data),
        *_all(train_step, seed=SEED),
        of(load_dataset, "load_dataset_from_mlruns", text="Whether to train on a dataset of an MLflow run instead."),
        of(load_dataset, "dataset_run_id", "training_dataset_run_id"),
        of(load_dataset, "dataset_tar_name"),
        of(load_dataset, "dataset_name"),
    ]
    return derived.pipeline("train", "Train a model and evaluate it on a test set.", parameters, wire)


def infer() -> Any:
    """Return the pipeline `infer`."""

    def wire(given: Given) -> None:
        data = load_dataset(
            model_architecture=given["model_architecture"],
            load_dataset_from_mlruns=True,
            dataset_run_id=given["run_id"],
            dataset_tar_name=given["dataset_tar_name"],
            dataset_name=given["dataset_name"],
        )
        _evaluate(data.outputs["dataset"], given)

    parameters = [
        of(load_dataset, "dataset_run_id", "run_id", default=REQUIRED),
        *_model(),
        *_all(infer_step),
        of(load_dataset, "dataset_tar_name", default="fgm.tar"),
        of(load_dataset, "dataset_name", default="fgm"),
    ]
    text = "Evaluate a registered model on a dataset that another MLflow run made."
    return derived.pipeline("infer", text, parameters, wire)


def attack(name: str, step: Any) -> Any:
    """Return the pipeline of an attack on a bare model, named after it."""

    def wire(given: Given) -> None:
        data = load_dataset(data_dir=given["data_dir"], model_architecture=given["model_architecture"])
        loaded = load_model(name=given["model"], model_architecture=given["model_architecture"])
        attacked = step(dataset=data.outputs["dataset"], model=loaded.outputs["model"], **_of(step, given))
        evaluated = {"dataset": attacked.outputs["adversarial"], "model": loaded.outputs["model"]}
        infer_step(**evaluated, **_of(infer_step, given))

    parameters = [
        of(load_dataset, "data_dir", default=REQUIRED, text=f"The images, {FOLDER}."),
        *_model(),
        # An attacker who knows a defense needs one to be put to, which the evaluation has.
        *(one for one in _all(step, seed=SEED) if one.name not in ("defenses", "eot_samples")),
    ]
    text = f"{_summary(step)}\n\nThe model is evaluated on the attacked images."
    return derived.pipeline(name, text, parameters, wire)


def defense(name: str, step: Any) -> Any:
    """Return the pipeline of a defense, named after it; its parameters bear its name before theirs."""
    own = {parameter: f"{name}_{parameter}" for parameter in stages.parameters_of(step) if parameter != "seed"}

    def wire(given: Given) -> None:
        data = load_dataset(
            data_dir=given["data_dir"],
            model_architecture=given["model_architecture"],
            split=given["dataset_split"],
            **{parameter.name: given[parameter.name] for parameter in _FROM_MLRUNS},
        )
        settings = {parameter: given[known] for parameter, known in own.items()}
        defended = step(dataset=data.outputs["dataset"], **settings, seed=given["seed"])
        _evaluate(defended.outputs["defended"], given)

    parameters = [
        *_model(),
        of(load_dataset, "data_dir", text=f"The images, {FOLDER}; not with load_dataset_from_mlruns."),
        _BATCH_SIZE,
        *(of(step, parameter, known) for parameter, known in own.items()),
        *_FROM_MLRUNS,
        of(load_dataset, "split", "dataset_split"),
        of(step, "seed", text=SEED),
    ]
    text = f"{_summary(step)}\n\nA registered model is evaluated on the result."
    return derived.pipeline(name, text, parameters, wire)


def _model() -> list[Parameter]:
    return [of(load_model, "name", "model"), of(load_model, "model_architecture")]


def _all(step: Any, **texts: str) -> list[Parameter]:
    """Return a pipeline's parameters for all of a step's, under their names."""
    return [of(step, name, text=texts.get(name, "")) for name in stages.parameters_of(step)]


def _of(step: Any, given: Given) -> dict[str, Any]:
    """Return those values that a step has a parameter of the same name for."""
    return {name: given[name] for name in stages.parameters_of(step) if name in given}


def _summary(step: Any) -> str:
    return inspect.cleandoc(step.python_func.__doc__).partition("\n\n")[0]


def _evaluate(dataset: Any, given: Given) -> None:
    """Evaluate a registered model on a dataset, as the original's defenses do."""
    loaded = load_model(name=given["model"], model_architecture=given["model_architecture"])
    infer_step(dataset=dataset, model=loaded.outputs["model"], **_of(infer_step, given))
