"""Replaces private parts of kfp.local for the time of a run; of another version of kfp they may differ."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Protocol

from evasion.pipelines import plan

# This module replaces private parts of kfp, which may differ in another version.
KFP = "2.17"


class KfpVersionError(RuntimeError):
    """The version of kfp is not supported."""


def require_version() -> None:
    """Refuse a kfp whose private parts are not known.

    Raises:
        KfpVersionError: It is not of version `KFP`.
    """
    installed = version("kfp")
    if not installed.startswith(f"{KFP}."):
        raise KfpVersionError(
            f"kfp must have version {KFP} to run pipelines on this machine. Received: kfp {installed}"
        )


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore kfp's local settings at the end: while they are set, every call of a component runs it."""
    from kfp.local.config import LocalExecutionConfig

    before = LocalExecutionConfig.instance
    try:
        yield
    finally:
        LocalExecutionConfig.instance = before


@contextmanager
def steps_started_by(handler: Callable[..., Any], *, docker: bool) -> Iterator[None]:
    """Run the steps with a handler instead of kfp's own.

    kfp has no setting for this. Its own handlers leave the step running when the run is interrupted, continue with
    other branches after a failure, and mix the step's output with their own. The handler for processes replaces
    "python3" in every argument, even in paths of data, by the path of the interpreter; the handler for containers
    takes a failed step for a successful one if its container is gone.
    """
    if docker:
        from kfp.local import docker_task_handler as module

        name = "DockerTaskHandler"
    else:
        from kfp.local import subprocess_task_handler as module

        name = "SubprocessTaskHandler"
    original = getattr(module, name)
    setattr(module, name, handler)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextmanager
def tasks_in_order() -> Iterator[None]:
    """Run the tasks of a graph in the order of `plan.in_order`."""
    from kfp.local import graph_utils

    def reversed_order(tasks: Mapping[str, Any]) -> list[str]:
        return plan.in_order({name: task.dependent_tasks for name, task in tasks.items()})[::-1]

    original = graph_utils.topological_sort_tasks
    graph_utils.topological_sort_tasks = reversed_order
    try:
        yield
    finally:
        graph_utils.topological_sort_tasks = original


class Rounds(Protocol):
    """Counts the rounds of a loop.

    Attributes:
        rounds: How many there are.
        round: The number of the one that runs, from 1.
    """

    rounds: int
    round: int


@contextmanager
def loops_run_by(counter: Rounds) -> Iterator[None]:
    """Run the items of loops one after the other.

    kfp runs two items at once, in threads which an interrupt does not reach, and hides the error of a step; two steps
    that run a model would share the cores that a single one can use. It also passes the item for every parameter of the
    loop that another step computes.
    """
    from kfp.compiler.pipeline_spec_builder import to_protobuf_value
    from kfp.local.orchestrator import task_spec_utils
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ParallelExecutor, execute_task
    from kfp.local.status import Status

    def run(_: Any, *, tasks: Sequence[tuple[str, Any]], io_store: Any, parallelism_limit: int, **options: Any) -> Any:  # noqa: ARG001
        outputs = {}
        counter.rounds = len(tasks)
        for counter.round, (name, spec) in enumerate(tasks, 1):
            outputs[name], status = execute_task(task_name=name, task_spec=spec, io_store=io_store, **options)
            if status == Status.FAILURE:
                return {}, status
        return outputs, Status.SUCCESS

    def iteration(loop: Any, item: Any, _: str) -> Any:
        spec = copy.deepcopy(loop)
        item_input = spec.inputs.parameters[spec.parameter_iterator.item_input]
        item_input.runtime_value.constant.CopyFrom(to_protobuf_value(item))
        spec.ClearField("parameter_iterator")
        return spec

    originals = ParallelExecutor.execute_parallel_tasks, task_spec_utils.create_parameter_loop_iteration_task_spec
    ParallelExecutor.execute_parallel_tasks = run
    task_spec_utils.create_parameter_loop_iteration_task_spec = iteration
    try:
        yield
    finally:
        ParallelExecutor.execute_parallel_tasks, task_spec_utils.create_parameter_loop_iteration_task_spec = originals
