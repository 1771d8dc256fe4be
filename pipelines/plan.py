"""Determines the steps that a pipeline will run with some arguments, and validates the arguments before any starts."""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from evasion.components.common import validate
from evasion.components.common.validate import ParameterError
from evasion.pipelines.catalog import Pipeline

# How kfp names the types of a pipeline's parameters, and what a Python caller may pass for each.
TYPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "String": ("a string", str),
    "Integer": ("an integer", int),
    "Float": ("a number", (int, float)),
    "Boolean": ("true or false", bool),
}

# How kfp marks, in a step's arguments, a value that is inserted when the pipeline runs.
PLACEHOLDER = "{{$"

# Tasks that load the data and the model of a run. They run first, so that a missing one fails the run early.
LOADS = ("load-dataset", "load-model", "init-model")


@dataclass(frozen=True)
class Problem:
    """An error in the arguments of a pipeline.

    Attributes:
        message: The rule and what was received.
        parameters: The pipeline's parameters that can fix it.
    """

    message: str
    parameters: tuple[str, ...] = ()


class BadArgumentsError(ValueError):
    """The arguments of a pipeline are invalid; nothing has been started.

    Attributes:
        problems: All errors in the arguments.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.message for problem in problems))


@dataclass(frozen=True)
class PlannedStep:
    """A step that will run.

    Attributes:
        task: Its name in the compiled pipeline, unique there.
        name: Its display name.
        function: The step's function, which is the name of its folder in `evasion.components`.
        arguments: The parameters whose values the pipeline passes and which are known before the run.
        later: The parameters whose values other steps compute.
        origin: The names of the pipeline's parameters by the names of the step's parameters that they are passed to.
        looped: Whether it runs once for each item of a loop.
    """

    task: str
    name: str
    function: str
    arguments: Mapping[str, Any]
    later: frozenset[str]
    origin: Mapping[str, str]
    looped: bool = False


def complete(pipeline: Pipeline, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every parameter of a pipeline, including defaults.

    Args:
        pipeline: The pipeline.
        arguments: Values by parameter name.

    Raises:
        BadArgumentsError: A name is unknown, a required value is missing, or a value has the wrong type.
    """
    inputs = pipeline.component_spec.inputs or {}
    problems = [
        Problem(f"{name} is not a parameter of {pipeline.name}. Its parameters: {', '.join(inputs)}")
        for name in arguments.keys() - inputs.keys()
    ]
    values = {}
    for name, declared in inputs.items():
        value = arguments.get(name, declared.default)
        expected, accepted = TYPES.get(declared.type, ("", object))
        if name not in arguments and not declared.optional:
            problems.append(Problem(f"{name} must be given", (name,)))
        # In Python a boolean is an integer; as a parameter it is not.
        elif not isinstance(value, accepted) or (isinstance(value, bool) and declared.type != "Boolean"):
            problems.append(Problem(f"{name} must be {expected}. Received: {name}={value!r}", (name,)))
        else:
            values[name] = float(value) if isinstance(value, int) and declared.type == "Float" else value
    if problems:
        raise BadArgumentsError(problems)
    return values


def planned_steps(pipeline: Pipeline, arguments: Mapping[str, Any]) -> list[PlannedStep]:
    """Return the steps that will run with these arguments, in the order in which they run on this machine.

    Branches whose condition is known to be false are left out; branches that depend on the result of a step are
    included. A step in a loop over the result of another step is included once.

    Args:
        pipeline: The pipeline.
        arguments: The value of every parameter, as `complete` returns it.

    Raises:
        BadArgumentsError: A string that decides which branch runs contains a quote, which kfp.local cannot compare.
    """
    from google.protobuf import json_format  # type: ignore[import-untyped]

    spec = json_format.MessageToDict(pipeline.pipeline_spec)
    scope = {name: _Value(value, name) for name, value in arguments.items()}
    return list(_walk(spec, spec["root"]["dag"], scope))


def in_order(tasks: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the tasks of a graph in the order in which they run on this machine, the same in every run.

    A compiled pipeline holds its tasks in an unordered map, whose order kfp.local follows: it differs from run to run.
    Here, of all tasks that have nothing to wait for, those of `LOADS` come first, then the others by name and number.

    Args:
        tasks: The names of the tasks that each task waits for, by its name; names of other graphs are ignored.
    """

    def rank(name: str) -> tuple[bool, str, int]:
        stem, _, number = name.rpartition("-")
        base, index = (stem, int(number)) if number.isdecimal() else (name, 1)
        return base not in LOADS, base, index

    waiting = {name: tasks.keys() & set(awaited) for name, awaited in tasks.items()}
    order: list[str] = []
    while waiting:
        order.append(min((name for name, awaited in waiting.items() if not awaited.difference(order)), key=rank))
        del waiting[order[-1]]
    return order


def check(planned: Sequence[PlannedStep], *, elsewhere: bool = False) -> None:
    """Validate the arguments of every step by the step's own rules.

    Args:
        planned: The steps that will run.
        elsewhere: Whether they run on another machine, where paths of this one mean nothing.

    Raises:
        BadArgumentsError: At least one argument is invalid.
    """
    problems: dict[str, Problem] = {}  # by the step's message: an error of two steps is reported once
    for step in planned:
        try:
            with validate.elsewhere() if elsewhere else nullcontext():
                _check_step(step)
        except ValueError as error:
            names = error.parameters if isinstance(error, ParameterError) else ()
            problems.setdefault(str(error), Problem(f"{step.name}: {error}", tuple(_pipeline_parameters(step, names))))
    if problems:
        raise BadArgumentsError(list(problems.values()))


@dataclass(frozen=True)
class _Value:
    """A value known before the run, and the pipeline's parameter that it comes from."""

    value: Any
    origin: str | None = None


def _walk(
    spec: Mapping[str, Any], dag: Mapping[str, Any], scope: Mapping[str, _Value], looped: bool = False
) -> Iterator[PlannedStep]:
    """Yield the steps of a graph of a compiled pipeline; `scope` holds the known inputs of the graph."""
    tasks = dag.get("tasks", {})
    for name in in_order({name: task.get("dependentTasks", []) for name, task in tasks.items()}):
        task = tasks[name]
        component = spec["components"][task["componentRef"]["name"]]
        inputs = dict(_known_inputs(task, component, scope))
        if _is_skipped(task.get("triggerPolicy", {}).get("condition", ""), inputs):
            continue
        if "dag" in component:
            yield from _walk(spec, component["dag"], inputs, looped or "parameterIterator" in task)
            continue
        command: list[str] = (
            spec["deploymentSpec"]["executors"][component["executorLabel"]].get("container", {}).get("args", [])
        )
        if "--function_to_execute" in command:
            function = command[command.index("--function_to_execute") + 1]
            display_name = task.get("taskInfo", {}).get("name", name)
            yield PlannedStep(
                task=name,
                # Without a display name it is `fgm`, `fgm-2`: kfp writes the function's name with dashes.
                name=display_name if display_name != name else function + name[len(function) :],
                function=function,
                arguments={key: input_value.value for key, input_value in inputs.items()},
                later=frozenset(task.get("inputs", {}).get("parameters", {}).keys() - inputs.keys()),
                origin={key: input_value.origin for key, input_value in inputs.items() if input_value.origin},
                looped=looped,
            )


def _known_inputs(
    task: Mapping[str, Any], component: Mapping[str, Any], scope: Mapping[str, _Value]
) -> Iterator[tuple[str, _Value]]:
    """Yield the parameters of a task whose values are known before the run."""
    declared = component.get("inputDefinitions", {}).get("parameters", {})
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "componentInputParameter" in source and "parameterExpressionSelector" not in source:
            input_value = scope.get(source["componentInputParameter"])
        elif "runtimeValue" in source:
            input_value = _Value(source["runtimeValue"].get("constant"))
        else:
            continue
        if input_value is None or PLACEHOLDER in str(input_value.value):
            continue
        if declared.get(name, {}).get("parameterType") == "NUMBER_INTEGER":
            # The compiled form has a single number type.
            input_value = _Value(int(input_value.value), input_value.origin)
        yield name, input_value


def _is_skipped(condition: str, inputs: Mapping[str, _Value]) -> bool:
    """Return whether a branch is known not to run."""
    from kfp.local.io import IOStore
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    names = re.findall(r"inputs\.parameter_values\['([^']+)'\]", condition)
    if not all(name in inputs for name in names):
        return False
    # kfp's own evaluation, so that these steps are the ones that it will run.
    store = IOStore()
    for name in names:
        _refuse_special_characters(inputs[name])
        store.put_parent_input(name, inputs[name].value)
    return not ConditionEvaluator.evaluate_condition(condition, store)


def _refuse_special_characters(input_value: _Value) -> None:
    """Refuse a string that would change the Python expression into which kfp.local pastes it."""
    if isinstance(input_value.value, str) and set(input_value.value) & {"'", "\\", "\n"}:
        name = input_value.origin or "a parameter"
        raise BadArgumentsError(
            [
                Problem(
                    f"{name} must not contain a quote, backslash or line break. Received: {name}={input_value.value!r}",
                    (name,),
                )
            ]
        )


def _check_step(step: PlannedStep) -> None:
    """Call the `check` of a step's module, unless it needs a value that another step computes."""
    package = f"evasion.components.{step.function}"
    if importlib.util.find_spec(package) is None:
        return
    component = getattr(importlib.import_module(f"{package}.component"), step.function)
    validate_arguments = importlib.import_module(f"{package}.task").check
    defaults = {
        name: declared.default
        for name, declared in (component.component_spec.inputs or {}).items()
        if declared.default is not None and name not in step.later
    }
    required = {
        name
        for name, parameter in inspect.signature(validate_arguments).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
    arguments = {**defaults, **step.arguments}
    if required <= arguments.keys():
        validate_arguments(**arguments)


def _pipeline_parameters(step: PlannedStep, names: Iterable[str]) -> Iterator[str]:
    """Yield the pipeline's parameters that are passed to these parameters of a step."""
    for name in names:
        if name in step.origin:
            yield step.origin[name]
        elif name in step.origin.values():
            yield name
