"""Pipelines whose parameters are those of their steps: name, type, default and text are taken from where they stand."""

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
        text: What it means.
        choices: The texts that it may be; none for any.
    """

    name: str
    type: type
    default: Any
    text: str
    choices: tuple[str, ...] = ()


def of(step: Any, parameter: str, name: str = "", *, default: Any = None, text: str = "") -> Parameter:
    """Return the parameter of a pipeline that hands its value to a parameter of a step.

    Args:
        step: The step.
        parameter: The step's parameter.
        name: The pipeline's, where it is another name.
        default: In place of the step's; `REQUIRED` for none.
        text: In place of the step's.
    """
    declared = step.component_spec.inputs[parameter]
    if default is None:
        default = declared.default if declared.optional else REQUIRED
    kind = _TYPES.get(declared.type, str)
    if kind is int and default is not REQUIRED:
        default = int(default)  # the compiled form knows one kind of number
    choices = _choices().get((step.name, parameter)) or _choices().get(("", parameter)) or ()
    text = text or " ".join((declared.description or "").split())
    return Parameter(name or parameter, kind, default, text, tuple(choices))


@functools.cache
def _choices() -> Mapping[tuple[str, str], Sequence[str]]:
    """Return the values that a parameter may have; those of a step outdo those of every step.

    They are a drop-down in Kubeflow's dashboard, and its server checks them.
    """
    from evasion.components.common.models.architectures import ARCHITECTURES, PRETRAINED
    from evasion.components.common.validate import NORMS
    from evasion.components.load_dataset.task import SPLITS
    from evasion.components.train.task import OPTIMIZERS

    return {
        ("", "model_architecture"): tuple(ARCHITECTURES),
        ("init-model", "model_architecture"): PRETRAINED,
        ("", "norm"): NORMS,
        ("", "optimizer"): OPTIMIZERS,
        ("", "split"): SPLITS,
    }


def pipeline(name: str, text: str, parameters: Sequence[Parameter], wire: Callable[[Mapping[str, Any]], None]) -> Any:
    """Return the pipeline of these parameters, a function under `dsl.pipeline`.

    Args:
        name: Its name as a function has it: `init_model`.
        text: What it does: the beginning of its docstring.
        parameters: Its parameters; those without a default come first.
        wire: Given the value of each parameter by name, makes the tasks.
    """
    from kfp import dsl

    ordered = sorted(parameters, key=lambda parameter: parameter.default is not REQUIRED)
    names = [parameter.name for parameter in ordered]

    def function(*given: Any) -> None:
        wire(dict(zip(names, given, strict=True)))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = "\n".join([text.rstrip(), "", "Args:", *(f"    {one.name}: {one.text}" for one in ordered)])
    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Argument(one.name, Argument.POSITIONAL_OR_KEYWORD, default=one.default, annotation=one.type)
            for one in ordered
        ],
    )
    made = dsl.pipeline(name=name.replace("_", "-"))(function)
    # kfp's compiler cannot say it; Kubeflow knows it since 2.17.
    declared = made.pipeline_spec.root.input_definitions.parameters
    for one in ordered:
        for choice in one.choices:
            declared[one.name].literals.add().string_value = choice
    return made


def keep_choices(source: Any, pipeline: Any) -> None:
    """Give the parameters of a pipeline the choices that those of the same names have in its source."""
    declared = pipeline.pipeline_spec.root.input_definitions.parameters
    for name, parameter in source.pipeline_spec.root.input_definitions.parameters.items():
        declared[name].literals.extend(parameter.literals)
