"""Follows a run until it has ended."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evasion.pipelines.plan import PlannedStep
from evasion.pipelines.submit.host import Host, UnreachableError
from evasion.pipelines.submit.workflow import Node, failed_pods

INTERVAL = 3.0  # seconds between two looks
PATIENCE = 600.0  # seconds without any answer

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class TimeUpError(RuntimeError):
    """The run has not ended in time; it goes on."""


@dataclass(frozen=True)
class StepProgress:
    """How far a step is.

    Attributes:
        step: The step.
        state: As Kubeflow names it: PENDING, RUNNING, SUCCEEDED, FAILED, SKIPPED, CANCELED …; blank before it begins.
        started: When it began.
        ended: When it ended.
        error: What Kubeflow says went wrong.
    """

    step: PlannedStep
    state: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    error: str = ""

    def seconds(self, now: datetime) -> float:
        """How long it has taken until it ended, or until now."""
        return max(0.0, ((self.ended or now) - self.started).total_seconds()) if self.started else 0.0


class WatchListener:
    """Is told how a run goes. Every method does nothing until a subclass gives it something to do."""

    def changed(self, steps: Sequence[StepProgress]) -> None:
        """Hear how far all steps are, at every look."""

    def silent(self, error: str) -> None:
        """Hear that the host did not answer and is asked again."""


def until_ended(
    host: Host,
    run_id: str,
    planned: Sequence[PlannedStep],
    listener: WatchListener,
    *,
    deadline: float | None = None,
    cancelled: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Any:
    """Return a run once it has ended.

    Of a run that was terminated Kubeflow says CANCELING, and at last FAILED: its state is CANCELED here.

    Args:
        host: Where it runs.
        run_id: Which run.
        planned: The steps to tell of.
        listener: Is told how they go.
        deadline: When to give up, by the clock.
        cancelled: Whether its end has been asked for.
        clock: Tells the time in seconds.

    Raises:
        TimeUpError: It has not ended in time.
        HostError: The host does not answer for ten minutes, or refuses to.
    """
    heard = clock()
    while True:
        try:
            run = host.run(run_id)
            heard = clock()
            listener.changed(progress(nodes(host, run), planned))
            cancelled = cancelled or run.state == "CANCELING"
            if cancelled and run.state == "FAILED":
                run.state = "CANCELED"
            if run.state in ENDED:
                return run
        except UnreachableError as error:
            if clock() - heard > PATIENCE:
                raise
            listener.silent(str(error))
        if deadline is not None and clock() >= deadline:
            raise TimeUpError
        left = INTERVAL if deadline is None else min(INTERVAL, deadline - clock())
        time.sleep(max(0.0, left))


def nodes(host: Host, run: Any) -> list[Node]:
    """Return the nodes of a run, as its workflow tells of them, or where that is not shown as Kubeflow does."""
    of_workflow = host.nodes(run.run_id)
    if of_workflow is not None:
        return of_workflow
    details = (run.run_details.task_details if run.run_details else None) or ()
    return [
        Node(
            display_name=str(detail.display_name),
            state=str(detail.state or ""),
            start_time=_time(detail.start_time or detail.create_time),
            end_time=_time(detail.end_time),
            message=str(detail.error.message or "") if detail.error else "",
        )
        for detail in details
    ]


def progress(nodes: Sequence[Node], planned: Sequence[PlannedStep]) -> list[StepProgress]:
    """Return how far each step is.

    A run's nodes are drivers and executors, tries and loops among others; a step's own bears its name.
    """
    named: dict[str, Node] = {}
    for node in nodes:
        name = node.display_name
        # In a loop several nodes bear it: the step is where the one is that has come the least far.
        named[name] = min(named.get(name, node), node, key=_how_far)
    return [_progress(step, named, nodes) for step in planned]


_ORDER = ("FAILED", "CANCELED", "CANCELING", "RUNNING", "PENDING", "SKIPPED", "SUCCEEDED")


def _how_far(node: Node) -> int:
    return _ORDER.index(node.state) if node.state in _ORDER else _ORDER.index("PENDING")


def _progress(step: PlannedStep, named: Mapping[str, Node], nodes: Sequence[Node]) -> StepProgress:
    driver = named.get(f"{step.task}-driver")
    failed = driver is not None and driver.state == "FAILED"  # so that it never came to the step itself
    node = driver if failed else named.get(step.task, driver)
    if node is None:
        return StepProgress(step)
    state = "PENDING" if node is driver and node.state == "SUCCEEDED" else node.state
    # The pods say what went wrong; of one that was tried again, its node says only that there are no more tries.
    pods = failed_pods(nodes, step.task)
    error = next((pod.message for pod in pods if pod.message), node.message) if state == "FAILED" else ""
    return StepProgress(step, state, node.start_time, node.end_time if state in ENDED else None, error)


def _time(value: datetime | None) -> datetime | None:
    """Return a time; Kubeflow writes one that has not come as one long past."""
    return value if value and value.year > 1970 else None
