"""The whole evaluation: how far attacks fool a model, and what each defense gives back.

    make demo

trains le_net on 4,000 MNIST digits and attacks 1,000 others. The README shows the table that it prints.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from evasion.pipelines.derived import REQUIRED, Parameter, of
from evasion.pipelines.inputs import with_datasets
from evasion.pipelines.stages import SHARED

TEXT = """Measure how far attacks fool {model} and what defenses give back, and draw the report.

Each defense is put to two attackers: an oblivious one, who does not know it, and a defense-aware one, who aims at the
model behind it."""


TEST_DATA = "The images to attack, a folder of one folder a class, local or gs://."
SHARDS = (
    "Into how many parts the images to attack are dealt out, at most as many as there are batches. Each is attacked, "
    "defended and evaluated by steps of its own, in a cluster at once, to the same numbers."
)
# Parameters of the security curve that the evaluation hands on; its `pgd_max_iter`, of a control, is not training's.
CURVE = ("batch_size", "eps", "norm", "eps_values", "eot_samples", "seed")
# Of adversarial training, under names that no attack has.
_TRAINING = {"eps": "pgd_eps", "eps_step": "pgd_eps_step", "max_iter": "pgd_max_iter"}


def _registered(packed: Any, given: Mapping[str, Any]) -> Any:  # noqa: ARG001
    return load_model(name=given["model"], model_architecture=given["model_architecture"]).outputs["model"]


def _trained(packed: Any, given: Mapping[str, Any]) -> Any:
    training = load_dataset(
        data_dir=given["data_dir_train"],
        model_architecture=given["model_architecture"],
        split="training",
        skip_unreadable=given["skip_unreadable"],
    ).set_display_name("load_dataset training")
    named = {name: given[_TRAINING.get(name, name)] for name in stages.parameters_of(train)}
    # Images to attack that cannot be used are found before hours of training.
    return train(dataset=training.outputs["dataset"], **named).after(packed).outputs["model"]


def _pretrained(packed: Any, given: Mapping[str, Any]) -> Any:  # noqa: ARG001
    return init_model(**{name: given[name] for name in stages.parameters_of(init_model)}).outputs["model"]


# Of each source of the model: what it is called, its parameters, and what makes it.
_Source = tuple[str, list[Parameter], Callable[[Any, Mapping[str, Any]], Any]]
SOURCES: dict[str, _Source] = {
    "registered": (
        "a registered model",
        [
            of(load_model, "name", "model", text="A registered model: name, name/version, name@alias or models:/ URI."),
            of(load_model, "model_architecture", text=SHARED["model_architecture"]),
        ],
        _registered,
    ),
    "trained": (
        "a model that it trains",
        [
            of(load_dataset, "data_dir", "data_dir_train", default=REQUIRED, text="The training set, likewise."),
            *(of(train, name, _TRAINING.get(name, ""), text=SHARED.get(name, "") if name not in _TRAINING else "")
              for name in stages.parameters_of(train)),
        ],
        _trained,
    ),
    "pretrained": (
        "a pretrained ImageNet model",
        [of(init_model, name, text=SHARED.get(name, "")) for name in stages.parameters_of(init_model)],
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
    """Return the pipeline that puts these defenses to these attacks.

    All that is known when a pipeline is made is settled then: in Kubeflow every condition and every loop costs pods and
    hides what happens behind a box of its own.

    Args:
        source: Where the model comes from, of `SOURCES`.
        attacks: Names from `stages.attacks()`, at least one; None for the usual ones.
        defenses: Names from `stages.defenses()`; None for the usual ones.
        sharded: Whether the images to attack are dealt out over a number of parts, a parameter of the pipeline.

    Raises:
        ParameterError: A name is unknown or given twice, or there is no attack.
    """
    attack_steps, defense_steps = _chosen_steps(attacks, defenses)
    model_text, _, make_model = SOURCES[source]
    settings = {name: stages.in_evaluation(name, step) for name, step in (attack_steps | defense_steps).items()}

    def wire(given: Mapping[str, Any]) -> None:
        own = {name: {parameter: given[known.name] for parameter, known in settings[name].items()} for name in settings}
        known = _as_json({name: _settings(step, own[name]) for name, step in defense_steps.items()})
        packed = load_dataset(
            data_dir=given["data_dir_test"],
            model_architecture=given["model_architecture"],
            skip_unreadable=given["skip_unreadable"],
            **({"shards": given["shards"], "batch_size": given["batch_size"]} if sharded else {}),
        )
        target = make_model(packed, given)

        def evaluate(clean: Any) -> tuple[Any, Any]:
            attacked = [
                step(dataset=clean, model=target, defenses=known, **own[name]).outputs["adversarial"]
                for name, step in attack_steps.items()
            ]
            defended = [
                with_datasets(step, 1 + len(attacked))(**_datasets(clean, *attacked), **own[name]).outputs["defended"]
                for name, step in defense_steps.items()
            ]
            evaluated = [clean, *attacked, *defended]
            measured = with_datasets(infer, len(evaluated))(
                **_datasets(*evaluated), model=target, batch_size=given["batch_size"], seed=given["seed"]
            )
            drawn = security_curve(
                dataset=clean,
                model=target,
                defenses=known,
                **{name: given[name] for name in CURVE},
            )
            return measured.outputs["evaluation"], drawn.outputs["curve"]

        floor = {"clean_accuracy_floor": given["clean_accuracy_floor"]}
        if not sharded:
            measured, drawn = evaluate(packed.outputs["dataset"])
            report(evaluation=measured, curve=drawn, **floor)
            return
        # Over addresses, of which each shard imports its own: a step would be given all shards of one artifact, and
        # Kubeflow has no loop over artifacts. Its importer takes an address from a loop, not from a step.
        with dsl.ParallelFor(packed.outputs["Output"], name="shard") as address:
            # Importers keep their names: the launcher records a display name as the task's, and the driver of a
            # consumer, which looks for the task's key, then finds no producer.
            measured, drawn = evaluate(dsl.importer(artifact_uri=address, artifact_class=dsl.Dataset).output)
        report(evaluation_shards=dsl.Collected(measured), curve_shards=dsl.Collected(drawn), **floor)

    declared = parameters(source, attacks, defenses, sharded=sharded)
    return derived.pipeline(f"evaluation_{source}", TEXT.format(model=model_text), declared, wire)


def parameters(
    source: str,
    attacks: Sequence[str] | None = None,
    defenses: Sequence[str] | None = None,
    *,
    sharded: bool = False,
) -> list[Parameter]:
    """Return the parameters of the pipeline that `evaluation` makes of the same arguments."""
    attack_steps, defense_steps = _chosen_steps(attacks, defenses)

    def own(steps: Mapping[str, Any]) -> list[Parameter]:
        return [parameter for name, step in steps.items() for parameter in stages.in_evaluation(name, step).values()]

    return _each_once(
        [
            of(load_dataset, "data_dir", "data_dir_test", default=REQUIRED, text=TEST_DATA),
            *SOURCES[source][1],
            *own(attack_steps),
            *(of(security_curve, name, text=SHARED.get(name, "")) for name in CURVE),
            *own(defense_steps),
            of(load_dataset, "skip_unreadable"),
            *([of(load_dataset, "shards", default=2, text=SHARDS)] if sharded else []),
            of(report, "clean_accuracy_floor"),
        ]
    )


def _chosen_steps(
    attacks: Sequence[str] | None, defenses: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    attack_steps = _chosen("attacks", attacks, stages.attacks())
    if not attack_steps:
        raise ParameterError(
            f"attacks must name one of {', '.join(stages.attacks())} at least. Received: none", "attacks"
        )
    return attack_steps, _chosen("defenses", defenses, stages.defenses())


def _chosen(what: str, names: Sequence[str] | None, known: Mapping[str, Any]) -> dict[str, Any]:
    chosen = stages.usual(known) if names is None else names
    if unknown := [name for name in chosen if name not in known]:
        raise ParameterError(f"{what} must be of {', '.join(known)}. Received: {', '.join(unknown)}", what)
    if len(set(chosen)) < len(chosen):
        raise ParameterError(f"{what} must name each once. Received: {', '.join(chosen)}", what)
    return {name: known[name] for name in chosen}


def _each_once(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Keep the first of several parameters of one name."""
    first: dict[str, Parameter] = {}
    for parameter in parameters:
        first.setdefault(parameter.name, parameter)
    return list(first.values())


def _datasets(*datasets: Any) -> dict[str, Any]:
    """Name datasets as the inputs of a step `with_datasets`."""
    return {f"dataset_{number}" if number > 1 else "dataset": one for number, one in enumerate(datasets, 1)}


def _settings(step: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a defense's transformation: those of the pipeline, and defaults."""
    return {
        name: given.get(name, of(step, name).default) for name in stages.parameters_of(step) if name not in OF_THE_STAGE
    }


def _as_json(defenses: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the value of a parameter `defenses`, in which Kubeflow fills in the pipeline's parameters as texts.

    Blanks keep braces apart: two of them would be the beginning or the end of a placeholder.
    """

    def value(one: Any) -> str:
        return f'"{one}"' if isinstance(one, PipelineChannel) else json.dumps(one)

    def braced(members: Iterable[str]) -> str:
        return "{ " + ", ".join(members) + " }"

    if not defenses:
        return ""
    return braced(
        f'"{name}": ' + braced(f'"{key}": {value(one)}' for key, one in settings.items())
        for name, settings in defenses.items()
    )
