"""The evaluation: how far attacks fool a model, and how much accuracy each defense restores.

    make demo

trains le_net on 4,000 MNIST digits and attacks 1,000 others. The README shows its output.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel

from evasion.components.common.defenses.known import OF_THE_STAGE
from evasion.components.common.validate import ParameterError
from evasion.components.infer.component import infer
from evasion.components.init_model.component import init_model
from evasion.components.load_dataset.component import load_dataset
from evasion.components.load_model.component import load_model
from evasion.components.report.component import report
from evasion.components.security_curve.component import security_curve
from evasion.components.train.component import train
from evasion.pipelines import derived, stages
from evasion.pipelines.derived import REQUIRED, Parameter, parameter_of
from evasion.pipelines.inputs import with_datasets
from evasion.pipelines.stages import SHARED

TEXT = """Measure how far attacks fool {model} and how much defenses help, and write the report.

Each defense is evaluated against two attackers: an oblivious one, who does not know the defense, and a defense-aware
one, who attacks the model together with the defense."""


TRAINING_DATA = "The training set: a folder with one subfolder per class, local or gs://."
TEST_DATA = "The images to attack: a folder with one subfolder per class, local or gs://."
SHARDS = (
    "Number of parts into which the images to attack are split, at most the number of batches. Each part is attacked, "
    "defended and evaluated by its own steps, in parallel in a cluster. The results do not depend on it."
)
# Parameters of the security curve and their names in the evaluation, where `pgd_max_iter` is that of training.
CURVE = {name: name for name in ("batch_size", "eps", "norm", "eps_values", "eot_samples", "seed")}
CURVE |= {"pgd_max_iter": "curve_pgd_max_iter"}
# Names of the parameters of adversarial training in the evaluation; no attack has parameters of these names.
_TRAINING = {"eps": "pgd_eps", "eps_step": "pgd_eps_step", "max_iter": "pgd_max_iter"}


Load = Callable[..., Any]
"""Creates the task that loads the images to attack, given what decides their size."""


def _existing(load: Load, values: Mapping[str, Any]) -> tuple[Any, Any]:
    arguments = {name: values[stages.OF_MODEL.get(name, name)] for name in stages.parameter_names(load_model)}
    model = load_model(**arguments).outputs["model"]
    return model, load(model=model)


def _trained(load: Load, values: Mapping[str, Any]) -> tuple[Any, Any]:
    images = _of_architecture(values)
    test_data = load(**images)
    training = load_dataset(
        data_dir=values["data_dir_train"], split="training", skip_unreadable=values["skip_unreadable"], **images
    ).set_display_name("load_dataset training")
    arguments = {name: values[_TRAINING.get(name, name)] for name in stages.parameter_names(train)}
    # Fail on unusable test images before hours of training.
    return train(dataset=training.outputs["dataset"], **arguments).after(test_data).outputs["model"], test_data


def _pretrained(load: Load, values: Mapping[str, Any]) -> tuple[Any, Any]:
    test_data = load(**_of_architecture(values))
    model = init_model(**{name: values[name] for name in stages.parameter_names(init_model)})
    return model.outputs["model"], test_data


def _of_architecture(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_dataset` for images of an architecture."""
    return {name: values[name] for name in ("model_architecture", *stages.RESIZING)}


_RESIZING = [parameter_of(load_dataset, name, text=SHARED[name]) for name in stages.RESIZING]
# A source of the model: its description, its parameters, and the function that creates its tasks and that of the images
# to attack; it returns the model and that task.
_Source = tuple[str, list[Parameter], Callable[[Load, Mapping[str, Any]], tuple[Any, Any]]]
SOURCES: dict[str, _Source] = {
    "registered": (
        "an existing model",
        [
            parameter_of(load_model, name, stages.OF_MODEL.get(name, ""), text=SHARED.get(name, ""))
            for name in stages.parameter_names(load_model)
        ],
        _existing,
    ),
    "trained": (
        "a newly trained model",
        [
            parameter_of(load_dataset, "data_dir", "data_dir_train", default=REQUIRED, text=TRAINING_DATA),
            *(parameter_of(train, name, _TRAINING.get(name, ""), text="" if name in _TRAINING else SHARED.get(name, ""))
              for name in stages.parameter_names(train)),
            *_RESIZING,
        ],
        _trained,
    ),
    "pretrained": (
        "a pretrained ImageNet model",
        [parameter_of(init_model, name, text=SHARED.get(name, "")) for name in stages.parameter_names(init_model)],
        _pretrained,
    ),
}  # fmt: skip


def evaluation(
    source: str,
    attacks: Sequence[str] | None = None,
    defenses: Sequence[str] | None = None,
    *,
    sharded: bool = False,
) -> Any:
    """Return the pipeline that evaluates these defenses against these attacks.

    Everything known when the pipeline is built is decided then: in Kubeflow every condition and every loop costs pods
    and hides its steps behind a box of its own.

    Args:
        source: The source of the model, a key of `SOURCES`.
        attacks: Names from `stages.attacks()`, at least one; None for the default attacks.
        defenses: Names from `stages.defenses()`; None for the default defenses.
        sharded: Whether the images to attack are split into parts, whose number is a parameter of the pipeline.

    Raises:
        ParameterError: A name is unknown or repeated, or there is no attack.
    """
    attack_steps, defense_steps = _selected_steps(attacks, defenses)
    model_text, _, make_tasks = SOURCES[source]
    settings = {name: stages.evaluation_parameters(name, step) for name, step in (attack_steps | defense_steps).items()}

    def wire(values: Mapping[str, Any]) -> None:
        arguments = {
            name: {own: values[parameter.name] for own, parameter in step_settings.items()}
            for name, step_settings in settings.items()
        }
        load = functools.partial(
            load_dataset,
            data_dir=values["data_dir_test"],
            skip_unreadable=values["skip_unreadable"],
            **({"shards": values["shards"], "batch_size": values["batch_size"]} if sharded else {}),
        )
        model, test_data = make_tasks(load, values)
        evaluate = functools.partial(_evaluate, model, attack_steps, defense_steps, arguments, values)
        floor = {"clean_accuracy_floor": values["clean_accuracy_floor"]}
        if not sharded:
            evaluation, curve = evaluate(test_data.outputs["dataset"])
            report(evaluation=evaluation, curve=curve, **floor)
            return
        # The loop is over addresses, of which each shard imports its own: a step would get all shards of one artifact,
        # and Kubeflow has no loop over artifacts. Its importer takes an address from a loop, not from a step.
        with dsl.ParallelFor(test_data.outputs["Output"], name="shard") as address:
            # Importers keep their names: the launcher records a display name as the task's, and the driver of a
            # consumer, which looks for the task's key, then finds no producer.
            evaluation, curve = evaluate(dsl.importer(artifact_uri=address, artifact_class=dsl.Dataset).output)
        report(evaluation_shards=dsl.Collected(evaluation), curve_shards=dsl.Collected(curve), **floor)

    declared = parameters(source, attacks, defenses, sharded=sharded)
    return derived.pipeline(f"evaluation_{source}", TEXT.format(model=model_text), declared, wire)


def _evaluate(
    model: Any,
    attack_steps: Mapping[str, Any],
    defense_steps: Mapping[str, Any],
    arguments: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Any],
    clean: Any,
) -> tuple[Any, Any]:
    """Create the tasks that attack, defend and evaluate a dataset; return its evaluation and its security curve.

    Args:
        model: The model.
        attack_steps: The attacks by name.
        defense_steps: The defenses by name.
        arguments: The arguments of each attack and defense.
        values: The values of the pipeline's parameters.
        clean: The dataset.
    """
    defenses = _as_json({name: _settings(step, arguments[name]) for name, step in defense_steps.items()})
    attacked = [
        step(dataset=clean, model=model, defenses=defenses, **arguments[name]).outputs["adversarial"]
        for name, step in attack_steps.items()
    ]
    defended = [
        with_datasets(step, 1 + len(attacked))(**_datasets(clean, *attacked), **arguments[name]).outputs["defended"]
        for name, step in defense_steps.items()
    ]
    evaluated = [clean, *attacked, *defended]
    evaluation = with_datasets(infer, len(evaluated))(
        **_datasets(*evaluated), model=model, batch_size=values["batch_size"], seed=values["seed"]
    )
    settings = {name: values[own] for name, own in CURVE.items()}
    curve = security_curve(dataset=clean, model=model, defenses=defenses, **settings)
    return evaluation.outputs["evaluation"], curve.outputs["curve"]


def parameters(
    source: str,
    attacks: Sequence[str] | None = None,
    defenses: Sequence[str] | None = None,
    *,
    sharded: bool = False,
) -> list[Parameter]:
    """Return the parameters of the pipeline that `evaluation` returns for the same arguments."""
    attack_steps, defense_steps = _selected_steps(attacks, defenses)

    def own(steps: Mapping[str, Any]) -> list[Parameter]:
        return [
            parameter for name, step in steps.items() for parameter in stages.evaluation_parameters(name, step).values()
        ]

    return _unique(
        [
            parameter_of(load_dataset, "data_dir", "data_dir_test", default=REQUIRED, text=TEST_DATA),
            *SOURCES[source][1],
            *own(attack_steps),
            *(parameter_of(security_curve, name, own, text=SHARED.get(name, "")) for name, own in CURVE.items()),
            *own(defense_steps),
            parameter_of(load_dataset, "skip_unreadable"),
            *([parameter_of(load_dataset, "shards", default=2, text=SHARDS)] if sharded else []),
            parameter_of(report, "clean_accuracy_floor"),
        ]
    )


def _selected_steps(
    attacks: Sequence[str] | None, defenses: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    attack_steps = _selected("attacks", attacks, stages.attacks())
    if not attack_steps:
        raise ParameterError(
            f"attacks must name at least one of {', '.join(stages.attacks())}. Received: none", "attacks"
        )
    return attack_steps, _selected("defenses", defenses, stages.defenses())


def _selected(parameter: str, names: Sequence[str] | None, steps: Mapping[str, Any]) -> dict[str, Any]:
    selected = stages.default_steps(steps) if names is None else names
    if unknown := [name for name in selected if name not in steps]:
        raise ParameterError(f"{parameter} must be among {', '.join(steps)}. Received: {', '.join(unknown)}", parameter)
    if len(set(selected)) < len(selected):
        raise ParameterError(f"{parameter} must not repeat a name. Received: {', '.join(selected)}", parameter)
    return {name: steps[name] for name in selected}


def _unique(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Return the parameters without repeated names; the first of each name counts, with the choices that all have."""
    first: dict[str, Parameter] = {}
    for parameter in parameters:
        earlier = first.setdefault(parameter.name, parameter)
        common = tuple(choice for choice in earlier.choices if choice in parameter.choices)
        first[parameter.name] = replace(earlier, choices=common)
    return list(first.values())


def _datasets(*datasets: Any) -> dict[str, Any]:
    """Return datasets by the names of the inputs of a step `with_datasets`."""
    return {f"dataset_{number}" if number > 1 else "dataset": dataset for number, dataset in enumerate(datasets, 1)}


def _settings(step: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a defense's transformation: those from the pipeline, and defaults."""
    return {
        name: values.get(name, parameter_of(step, name).default)
        for name in stages.parameter_names(step)
        if name not in OF_THE_STAGE
    }


def _as_json(defenses: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the value of a parameter `defenses`, in which Kubeflow inserts the pipeline's parameters as strings.

    Spaces separate braces: two adjacent braces would begin or end a placeholder.
    """

    def encoded(value: Any) -> str:
        return f'"{value}"' if isinstance(value, PipelineChannel) else json.dumps(value)

    def braced(members: Iterable[str]) -> str:
        return "{ " + ", ".join(members) + " }"

    if not defenses:
        return ""
    return braced(
        f'"{name}": ' + braced(f'"{key}": {encoded(value)}' for key, value in settings.items())
        for name, settings in defenses.items()
    )
