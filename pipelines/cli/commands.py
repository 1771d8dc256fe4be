"""The options of the commands `evasion run` and `evasion submit` for a pipeline, and the pipeline that they select."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
from click.core import ParameterSource

from evasion.pipelines import derived
from evasion.pipelines.derived import REQUIRED, Parameter

# Functions import kfp when they need it, so that --help stays fast.

# A pipeline and the values of its parameters.
Selection = tuple[Any, dict[str, Any]]


class UselessOptionError(ValueError):
    """An option has no effect on the selected pipeline."""


@dataclass(frozen=True)
class PipelineCommand:
    """The command of a pipeline.

    Attributes:
        name: Its name.
        text: Its description; the first paragraph is the summary.
        parameters: Its parameters. For a default of None, the pipeline's own default is used.
        choices: Help texts of options that take names of steps, by the name of the option.
        select: Returns the pipeline and the values of its parameters for the values of all options; raises ValueError
            if the options contradict each other.
    """

    name: str
    text: str
    parameters: tuple[Parameter, ...]
    choices: Mapping[str, str]
    select: Callable[[Mapping[str, Any]], Selection]

    @property
    def summary(self) -> str:
        """The first paragraph of the text, as one line."""
        return " ".join(self.text.partition("\n\n")[0].split())


def names() -> list[str]:
    """Return the names of all commands; the evaluations share a single command."""
    from evasion.pipelines import catalog

    evaluations = catalog.evaluations()
    return [*(name for name in catalog.pipelines() if name not in evaluations), catalog.EVALUATION]


@functools.cache
def command(name: str) -> PipelineCommand | None:
    """Return the command of this name, or of the pipeline of this name; None if neither exists."""
    from evasion.pipelines import catalog

    if name == catalog.EVALUATION:
        return _evaluation()
    pipeline = catalog.pipelines().get(name)
    return pipeline_command(name, pipeline) if pipeline else None


def pipeline_command(name: str, pipeline: Any, left_out: tuple[str, ...] = ()) -> PipelineCommand:
    """Return the command of one pipeline with all its parameters, except those left out."""
    inputs = [parameter for parameter in pipeline.component_spec.inputs or {} if parameter not in left_out]
    parameters = tuple(derived.parameter_of(pipeline, parameter) for parameter in inputs)
    function = getattr(pipeline, "pipeline_func", None)
    text = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:")[0] if function else ""

    def select(values: Mapping[str, Any]) -> Selection:
        return pipeline, {parameter: values[parameter] for parameter in inputs}

    return PipelineCommand(name, text, parameters, {}, select)


def _evaluation() -> PipelineCommand:
    """Return the command that selects one of the evaluations by its options."""
    from evasion.pipelines import catalog, stages
    from evasion.pipelines.evaluation import SHARDS, SOURCES, TEXT, parameters

    all_steps = {"attacks": list(stages.attacks()), "defenses": list(stages.defenses())}
    merged = _merged(
        [{parameter.name: parameter for parameter in parameters(source, *all_steps.values())} for source in SOURCES]
    )
    merged["shards"] = Parameter("shards", int, 1, SHARDS)

    def select(values: Mapping[str, Any]) -> Selection:
        options = {name: value for name, value in values.items() if name in merged and value is not None}
        source = next((source for source, name in _DECISIVE.items() if options.get(name)), "pretrained")
        sharded = options["shards"] != 1
        pipeline = catalog.evaluation(source, values["attacks"], values["defenses"], sharded=sharded)
        inputs = pipeline.component_spec.inputs
        context = click.get_current_context(silent=True)
        useless = [
            name
            for name in options
            if name not in inputs and name != "shards" and context and options[name] != ""
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ]
        if useless:
            raise UselessOptionError(
                f"{', '.join(useless)} must be omitted: not used for {SOURCES[source][0]} with these attacks and "
                f"defenses. Received: {', '.join(f'{name}={options[name]!r}' for name in useless)}"
            )
        return pipeline, {name: value for name, value in options.items() if name in inputs}

    text = TEXT.format(model="a model") + _EXPLANATION
    choices = {
        option: f"The {option} to {verb}, among {', '.join(all_steps[option])}.  "
        f"[default: {', '.join(stages.default_steps(all_steps[option]))}]"
        for option, verb in (("attacks", "run"), ("defenses", "evaluate"))
    }
    return PipelineCommand(catalog.EVALUATION, text, tuple(merged.values()), choices, select)


def _merged(pipelines: Sequence[Mapping[str, Parameter]]) -> dict[str, Parameter]:
    """Return the parameters of all these pipelines by name.

    A default that differs between the pipelines becomes None, as does `REQUIRED` unless every pipeline requires it.
    """
    merged: dict[str, Parameter] = {}
    for name in {name: None for parameters in pipelines for name in parameters}:
        declared = [parameters[name] for parameters in pipelines if name in parameters]
        default = declared[0].default
        same = len({parameter.default for parameter in declared}) == 1
        keep = same and (default is not REQUIRED or len(declared) == len(pipelines))
        merged[name] = declared[0] if keep else replace(declared[0], default=None)
    return merged


# The parameter that selects each source of the model; without any, the model is pretrained.
_DECISIVE = {"registered": "model", "trained": "data_dir_train"}

_EXPLANATION = """

With `model`, the model is an existing one, from a file or MLflow; otherwise, with `data_dir_train`, it is trained;
otherwise it is the pretrained ImageNet model of `model_architecture`.

    evasion run evaluation --data-dir-test data/test --model my_model.keras --eps 0.03137
    evasion run evaluation --data-dir-train data/train --data-dir-test data/test --model-architecture le_net"""
