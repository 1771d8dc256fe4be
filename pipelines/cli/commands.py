"""What the commands `evasion run` and `evasion submit` of a pipeline take, and which pipeline they then ask for."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
from click.core import ParameterSource

from evasion.pipelines import derived
from evasion.pipelines.derived import REQUIRED, Parameter

# kfp is imported by the functions that need it, so that help comes at once.

Chosen = tuple[Any, dict[str, Any]]


class UselessOptionError(ValueError):
    """An option was given that does nothing in the pipeline that the others ask for."""


@dataclass(frozen=True)
class PipelineCommand:
    """The command of a pipeline.

    Attributes:
        name: What it is called.
        text: What it does; the first paragraph is its summary.
        parameters: What it takes. One whose default is None is left to the pipeline.
        choices: Names of steps that it takes beside them, by the name of the option.
        choose: Given the values of parameters and choices by name, returns the pipeline and the values of its own
            parameters; a ValueError says what does not go together.
    """

    name: str
    text: str
    parameters: tuple[Parameter, ...]
    choices: Mapping[str, str]
    choose: Callable[[Mapping[str, Any]], Chosen]

    @property
    def summary(self) -> str:
        """The first paragraph of the text, as one line."""
        return " ".join(self.text.partition("\n\n")[0].split())


def names() -> list[str]:
    """Return the names of all commands; the evaluation is one, whatever its options choose."""
    from evasion.pipelines import catalog

    evaluations = catalog.evaluations()
    return [*(name for name in catalog.pipelines() if name not in evaluations), catalog.EVALUATION]


@functools.cache
def command(name: str) -> PipelineCommand | None:
    """Return the command of this name, or of the pipeline of this name; None if there is none."""
    from evasion.pipelines import catalog

    if name == catalog.EVALUATION:
        return _evaluation()
    pipeline = catalog.pipelines().get(name)
    return of_pipeline(name, pipeline) if pipeline else None


def of_pipeline(name: str, pipeline: Any, left_out: tuple[str, ...] = ()) -> PipelineCommand:
    """Return the command of one pipeline, with all its parameters but those left out."""
    inputs = [known for known in pipeline.component_spec.inputs or {} if known not in left_out]
    parameters = tuple(derived.of(pipeline, known) for known in inputs)
    documented = getattr(pipeline, "pipeline_func", None)
    text = inspect.cleandoc(documented.__doc__ or "").partition("\n\nArgs:")[0] if documented else ""
    return PipelineCommand(name, text, parameters, {}, lambda values: (pipeline, {one: values[one] for one in inputs}))


def _evaluation() -> PipelineCommand:
    """Return the command that runs the evaluation whose parameters it is given."""
    from evasion.pipelines import catalog, stages
    from evasion.pipelines.evaluation import SHARDS, SOURCES, TEXT, parameters

    everything = {"attacks": list(stages.attacks()), "defenses": list(stages.defenses())}
    of_source = {source: {one.name: one for one in parameters(source, *everything.values())} for source in SOURCES}
    merged: dict[str, Parameter] = {}
    for name in {name: None for known in of_source.values() for name in known}:
        same = [known.get(name) for known in of_source.values()]
        there = [one for one in same if one is not None]
        alike = len({one.default for one in there}) == 1
        needed = alike and there[0].default is REQUIRED and None not in same
        merged[name] = there[0] if needed or (alike and there[0].default is not REQUIRED) else _left(there[0])
    merged["shards"] = Parameter("shards", int, 1, SHARDS)

    def choose(values: Mapping[str, Any]) -> Chosen:
        chosen = {one: values[one] for one in everything}
        given = {name: value for name, value in values.items() if name in merged and value is not None}
        source = next((one for one, name in _DECIDED_BY.items() if given.get(name)), "pretrained")
        sharded = given["shards"] != 1
        pipeline = catalog.evaluation(source, chosen["attacks"], chosen["defenses"], sharded=sharded)
        known = pipeline.component_spec.inputs
        context = click.get_current_context(silent=True)
        useless = [
            name
            for name in given
            if name not in known and name != "shards" and context and given[name] != ""
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ]
        if useless:
            raise UselessOptionError(
                f"{', '.join(useless)} must be left out: of no use to {SOURCES[source][0]} with these attacks and "
                f"defenses. Received: {', '.join(f'{name}={given[name]!r}' for name in useless)}"
            )
        return pipeline, {name: value for name, value in given.items() if name in known}

    text = TEXT.format(model="a model") + _EXPLAINED
    choices = {
        what: f"{', '.join(known)}: which {what} to {verb}.  [default: {', '.join(stages.usual(known))}]"
        for what, known, verb in (
            ("attacks", everything["attacks"], "make"),
            ("defenses", everything["defenses"], "judge"),
        )
    }
    return PipelineCommand(catalog.EVALUATION, text, tuple(merged.values()), choices, choose)


def _left(parameter: Parameter) -> Parameter:
    return replace(parameter, default=None)


# The source of the model, by the parameter that is given for it; without one it is pretrained.
_DECIDED_BY = {"registered": "model", "trained": "data_dir_train"}

_EXPLAINED = """

The model is the registered one if `model` is given; else it is trained if `data_dir_train` is given; else it is the
pretrained ImageNet model of `model_architecture`.

    evasion run evaluation --data-dir-train data/train --data-dir-test data/test --model-architecture le_net
    evasion run evaluation --data-dir-test data/test --model evasion_le_net --model-architecture le_net --eps 0.1"""
