"""What a pipeline would do with these arguments, and what is wrong with them, before anything starts."""

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
    "String": ("a text", str),
    "Integer": ("an integer", int),
    "Float": ("a number", (int, float)),
    "Boolean": ("true or false", bool),
}

# How kfp writes, in a step's arguments, a value that is filled in when the pipeline runs.
PLACEHOLDER = "{{$"

# Tasks that find out whether what a run is to be made of is there.
LOADS = ("load-dataset", "load-model", "init-model")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the arguments of a pipeline.

    Attributes:
        message: The rule and what was received.
        parameters: The pipeline's parameters that decide it.
    """

    message: str
    parameters: tuple[str, ...] = ()


class BadArgumentsError(ValueError):
    """The arguments of a pipeline break a rule; nothing has been started.

    Attributes:
        problems: Everything that was found.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.message for problem in problems))


@dataclass(frozen=True)
class PlannedStep:
    """A step that will run.

    Attributes:
        task: Its name in the compiled pipeline, unique there.
        name: Its name for people.
        function: The step's function, which is the name of its folder in `evasion.components`.
        arguments: The parameters that the pipeline passes and whose value is known before it runs.
        later: The parameters that the pipeline passes and whose value another step will find.
        origin: For each parameter that a pipeline's parameter is handed to, the name of that one.
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
    """Return the value of every parameter of a pipeline, defaults included.

    Args:
        pipeline: The pipeline.
        arguments: Values by parameter name.

    Raises:
        BadArgumentsError: A name is unknown, a required value missing or of the wrong type.
    """
    inputs = pipeline.component_spec.inputs or {}
    problems = [
        Problem(f"{name} is no parameter of {pipeline.name}. Its parameters: {', '.join(inputs)}")
        for name in arguments.keys() - inputs.keys()
    ]
    values = {}
    for name, declared in inputs.items():
        value = arguments.get(name, declared.default)
        kind, accepted = TYPES.get(declared.type, ("", object))
        if name not in arguments and not declared.optional:
            problems.append(Problem(f"{name} must be given", (name,)))
        # Python counts a boolean as an integer; a parameter does not.
        elif not isinstance(value, accepted) or (isinstance(value, bool) and declared.type != "Boolean"):
            problems.append(Problem(f"{name} must be {kind}. Received: {name}={value!r}", (name,)))
        else:
            values[name] = float(value) if isinstance(value, int) and declared.type == "Float" else value
    if problems:
        raise BadArgumentsError(problems)
    return values


def planned_steps(pipeline: Pipeline, arguments: Mapping[str, Any]) -> list[PlannedStep]:
    """Return the steps that will run with these arguments, in the order in which they run on this machine.

    Branches whose condition is known to be false are left out; those that depend on what a step will find
    are in. A step in a loop, of which a step will find the items, is in once.

    Args:
        pipeline: The pipeline.
        arguments: The value of every parameter, as `complete` returns it.

    Raises:
        BadArgumentsError: A text that decides which branch runs holds a quote, which kfp.local cannot compare.
    """
    from google.protobuf import json_format  # type: ignore[import-untyped]

    spec = json_format.MessageToDict(pipeline.pipeline_spec)
    scope = {name: _Value(value, name) for name, value in arguments.items()}
    return list(_walk(spec, spec["root"]["dag"], scope))


def in_order(tasks: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the tasks of a graph in the order in which they run on this machine, the same each time.

    A compiled pipeline holds its tasks in a map without an order, which kfp.local follows: it differs from run to run.
    Here the first is, of all that have nothing to wait for, one of `LOADS`, then the first by name and number.

    Args:
        tasks: Of each task the names of those that it waits for; names of other graphs do not count.
    """

    def rank(name: str) -> tuple[bool, str, int]:
        stem, _, number = name.rpartition("-")
        known, place = (stem, int(number)) if number.isdecimal() else (name, 1)
        return known not in LOADS, known, place

    waiting = {name: tasks.keys() & set(others) for name, others in tasks.items()}
    found: list[str] = []
    while waiting:
        found.append(min((name for name, others in waiting.items() if not others.difference(found)), key=rank))
        del waiting[found[-1]]
    return found


def check(planned: Sequence[PlannedStep], *, elsewhere: bool = False) -> None:
    """Apply every step's own rules to the arguments that will reach it.

    Args:
        planned: The steps that will run.
        elsewhere: Whether they run where other files are than here.

    Raises:
        BadArgumentsError: At least one rule is broken.
    """
    problems: dict[str, Problem] = {}  # by the step's words: what two steps object to is said once
    for step in planned:
        try:
            with validate.elsewhere() if elsewhere else nullcontext():
                _check(step)
        except ValueError as error:
            own = error.parameters if isinstance(error, ParameterError) else ()
            problems.setdefault(str(error), Problem(f"{step.name}: {error}", tuple(_parameters(step, own))))
    if problems:
        raise BadArgumentsError(list(problems.values()))


@dataclass(frozen=True)
class _Value:
    """A value known before the run, and the pipeline's parameter that it is handed down from."""

    value: Any
    origin: str | None = None


def _walk(
    spec: Mapping[str, Any], dag: Mapping[str, Any], scope: Mapping[str, _Value], looped: bool = False
) -> Iterator[PlannedStep]:
    """Yield the steps of one graph of a compiled pipeline; `scope` holds the graph's known inputs."""
    tasks = dag.get("tasks", {})
    for name in in_order({name: task.get("dependentTasks", []) for name, task in tasks.items()}):
        task = tasks[name]
        component = spec["components"][task["componentRef"]["name"]]
        inputs = dict(_known(task, component, scope))
        if _is_false(task.get("triggerPolicy", {}).get("condition", ""), inputs):
            continue
        if "dag" in component:
            yield from _walk(spec, component["dag"], inputs, looped or "parameterIterator" in task)
            continue
        command: list[str] = (
            spec["deploymentSpec"]["executors"][component["executorLabel"]].get("container", {}).get("args", [])
        )
        if "--function_to_execute" in command:
            function = command[command.index("--function_to_execute") + 1]
            shown = task.get("taskInfo", {}).get("name", name)
            yield PlannedStep(
                task=name,
                # Without a name of its own it is `fgm`, `fgm-2`: kfp writes the function with dashes.
                name=shown if shown != name else function + name[len(function) :],
                function=function,
                arguments={key: known.value for key, known in inputs.items()},
                later=frozenset(task.get("inputs", {}).get("parameters", {}).keys() - inputs.keys()),
                origin={key: known.origin for key, known in inputs.items() if known.origin},
                looped=looped,
            )


def _known(
    task: Mapping[str, Any], component: Mapping[str, Any], scope: Mapping[str, _Value]
) -> Iterator[tuple[str, _Value]]:
    """Yield those parameters of a task whose value is known before the run."""
    declared = component.get("inputDefinitions", {}).get("parameters", {})
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "componentInputParameter" in source and "parameterExpressionSelector" not in source:
            known = scope.get(source["componentInputParameter"])
        elif "runtimeValue" in source:
            known = _Value(source["runtimeValue"].get("constant"))
        else:
            continue
        if known is None or PLACEHOLDER in str(known.value):
            continue
        if declared.get(name, {}).get("parameterType") == "NUMBER_INTEGER":
            # The compiled form knows one kind of number.
            known = _Value(int(known.value), known.origin)
        yield name, known


def _is_false(condition: str, inputs: Mapping[str, _Value]) -> bool:
    """Tell whether a branch is known not to run."""
    from kfp.local.io import IOStore
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    names = re.findall(r"inputs\.parameter_values\['([^']+)'\]", condition)
    if not all(name in inputs for name in names):
        return False
    # kfp's own evaluation, so that the steps counted here are those that it will run.
    store = IOStore()
    for name in names:
        _pasteable(inputs[name])
        store.put_parent_input(name, inputs[name].value)
    return not ConditionEvaluator.evaluate_condition(condition, store)


def _pasteable(known: _Value) -> None:
    """Refuse a text that kfp.local, which pastes it into a Python expression, would take for something else."""
    if isinstance(known.value, str) and set(known.value) & {"'", "\\", "\n"}:
        name = known.origin or "a parameter"
        raise BadArgumentsError(
            [Problem(f"{name} must hold no quote, backslash or line break. Received: {name}={known.value!r}", (name,))]
        )


def _check(step: PlannedStep) -> None:
    """Call the `check` of a step's module, unless a value that it needs comes from another step."""
    package = f"evasion.components.{step.function}"
    if importlib.util.find_spec(package) is None:
        return
    component = getattr(importlib.import_module(f"{package}.component"), step.function)
    rules = importlib.import_module(f"{package}.task").check
    defaults = {
        name: declared.default
        for name, declared in (component.component_spec.inputs or {}).items()
        if declared.default is not None and name not in step.later
    }
    needed = {
        name
        for name, parameter in inspect.signature(rules).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
    arguments = {**defaults, **step.arguments}
    if needed <= arguments.keys():
        rules(**arguments)


def _parameters(step: PlannedStep, own: Iterable[str]) -> Iterator[str]:
    """Yield the pipeline's parameters that are passed to these parameters of a step."""
    for name in own:
        if name in step.origin:
            yield step.origin[name]
        elif name in step.origin.values():
            yield name
