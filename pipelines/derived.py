"""Pipelines whose parameters are derived from their steps: name, type, default and text are declared in the step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter as Argument
from inspect import Signature
from typing import Any

REQUIRED = Argument.empty

_TYPES = {"String": str, "Integer": int, "Float": float, "Boolean": bool}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a pipeline.

    Attributes:
        name: Its name in the pipeline.
        type: str, int, float or bool.
        default: Its default, or `REQUIRED`.
        text: Its description.
        choices: Its allowed values; empty if any value is allowed.
    """

    name: str
    type: type
    default: Any
    text: str
    choices: tuple[str, ...] = ()


def parameter_of(step: Any, parameter: str, name: str = "", *, default: Any = None, text: str = "") -> Parameter:
    """Return the parameter of a pipeline that is passed to a parameter of a step.

    Args:
        step: The step.
        parameter: The name of the step's parameter.
        name: Its name in the pipeline, if that differs.
        default: Replaces the step's default; `REQUIRED` for none.
        text: Replaces the step's description.
    """
    declared = step.component_spec.inputs[parameter]
    if default is None:
        default = declared.default if declared.optional else REQUIRED
    kind = _TYPES.get(declared.type, str)
    if kind is int and default is not REQUIRED:
        default = int(default)  # the compiled form has a single number type
    choices = _choices().get((step.name, parameter)) or _choices().get(("", parameter)) or ()
    text = text or " ".join((declared.description or "").split())
    return Parameter(name or parameter, kind, default, text, tuple(choices))


@functools.cache
def _choices() -> Mapping[tuple[str, str], Sequence[str]]:
    """Return the allowed values of parameters by step and name; a blank step means every other step.

    Kubeflow's dashboard shows them as a drop-down list, and its server checks them.
    """
    from evasion.components.auto_attack import budgets
    from evasion.components.auto_attack import task as auto_attack
    from evasion.components.common.data.header import SPLITS
    from evasion.components.common.data.resizing import METHODS
    from evasion.components.common.models.architectures import ARCHITECTURES, PRETRAINED
    from evasion.components.common.models.ranges import RANGES
    from evasion.components.common.validate import NORMS
    from evasion.components.train.task import OPTIMIZERS

    return {
        ("", "model_architecture"): tuple(ARCHITECTURES),
        ("load-model", "model_architecture"): ("", *ARCHITECTURES),
        ("init-model", "model_architecture"): PRETRAINED,
        ("", "input_range"): tuple(RANGES),
        ("", "interpolation"): tuple(METHODS),
        ("", "norm"): NORMS,
        ("auto-attack", "norm"): auto_attack.NORMS,
        ("auto-attack", "budget"): tuple(budgets.BUDGETS),
        ("", "optimizer"): OPTIMIZERS,
        ("", "split"): SPLITS,
    }


def pipeline(name: str, text: str, parameters: Sequence[Parameter], wire: Callable[[Mapping[str, Any]], None]) -> Any:
    """Return a pipeline with these parameters, a function decorated with `dsl.pipeline`.

    Args:
        name: Its name as a Python identifier, such as `init_model`.
        text: What it does: the beginning of its docstring.
        parameters: Its parameters; those without a default come first.
        wire: Creates the tasks, given the value of each parameter by name.
    """
    from kfp import dsl

    ordered = sorted(parameters, key=lambda parameter: parameter.default is not REQUIRED)
    names = [parameter.name for parameter in ordered]

    def function(*values: Any) -> None:
        wire(dict(zip(names, values, strict=True)))

    function.__name__ = function.__qualname__ = name
    documented = [f"    {parameter.name}: {parameter.text}" for parameter in ordered]
    function.__doc__ = "\n".join([text.rstrip(), "", "Args:", *documented])
    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Argument(
                parameter.name,
                Argument.POSITIONAL_OR_KEYWORD,
                default=parameter.default,
                annotation=parameter.type,
            )
            for parameter in ordered
        ],
    )
    compiled = dsl.pipeline(name=name.replace("_", "-"))(function)
    # kfp's compiler cannot write allowed values; Kubeflow reads them since 2.17.
    declared = compiled.pipeline_spec.root.input_definitions.parameters
    for parameter in ordered:
        for choice in parameter.choices:
            declared[parameter.name].literals.add().string_value = choice
    return compiled


def keep_choices(source: Any, pipeline: Any) -> None:
    """Copy the choices of a pipeline's parameters from the parameters of the same names in its source."""
    declared = pipeline.pipeline_spec.root.input_definitions.parameters
    for name, parameter in source.pipeline_spec.root.input_definitions.parameters.items():
        declared[name].literals.extend(parameter.literals)
