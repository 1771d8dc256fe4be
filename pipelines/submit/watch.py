"""Follows a run until it ends."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evasion.pipelines.plan import PlannedStep
from evasion.pipelines.submit.host import Host, UnreachableError
from evasion.pipelines.submit.workflow import Node, failed_pods

INTERVAL = 3.0  # seconds between two requests
PATIENCE = 600.0  # seconds without any response

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class TimeUpError(RuntimeError):
    """The run has not ended in time; it is still running."""


@dataclass(frozen=True)
class StepProgress:
    """The progress of a step.

    Attributes:
        step: The step.
        state: Kubeflow's state: PENDING, RUNNING, SUCCEEDED, FAILED, SKIPPED, CANCELED …; blank before the step begins.
        started: The time of its start.
        ended: The time of its end.
        error: Kubeflow's error message.
    """

    step: PlannedStep
    state: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    error: str = ""

    def seconds(self, now: datetime) -> float:
        """Return the seconds from its start to its end, or to now."""
        return max(0.0, ((self.ended or now) - self.started).total_seconds()) if self.started else 0.0


class WatchListener:
    """Receives the events of a run. All methods do nothing by default; subclasses override them."""

    def changed(self, steps: Sequence[StepProgress]) -> None:
        """Called with the progress of all steps after every request."""

    def silent(self, error: str) -> None:
        """Called when the host did not respond and the request will be retried."""


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
    """Wait for the end of a run and return the run.

    Kubeflow's state of a terminated run is CANCELING and finally FAILED; this function returns it as CANCELED.

    Args:
        host: The host of the run.
        run_id: The run's id.
        planned: The steps to report.
        listener: Receives the progress of the steps.
        deadline: The time at which to give up, by the clock.
        cancelled: Whether the termination of the run has been requested.
        clock: Returns the time in seconds.

    Raises:
        TimeUpError: The run has not ended in time.
        HostError: The host does not respond for ten minutes, or refuses the request.
    """
    last_response = clock()
    while True:
        try:
            run = host.run(run_id)
            last_response = clock()
            listener.changed(progress(nodes(host, run), planned))
            cancelled = cancelled or run.state == "CANCELING"
            if cancelled and run.state == "FAILED":
                run.state = "CANCELED"
            if run.state in ENDED:
                return run
        except UnreachableError as error:
            if clock() - last_response > PATIENCE:
                raise
            listener.silent(str(error))
        if deadline is not None and clock() >= deadline:
            raise TimeUpError
        pause = INTERVAL if deadline is None else min(INTERVAL, deadline - clock())
        time.sleep(max(0.0, pause))


def nodes(host: Host, run: Any) -> list[Node]:
    """Return the nodes of a run from its workflow; if the host does not show it, from Kubeflow's API."""
    workflow_nodes = host.nodes(run.run_id)
    if workflow_nodes is not None:
        return workflow_nodes
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
    """Return the progress of each step.

    The nodes of a run include drivers, executors, tries and loops; a step's own node has the name of its task.
    """
    nodes_by_name: dict[str, Node] = {}
    for node in nodes:
        name = node.display_name
        # In a loop several nodes have the same name: the least advanced one counts.
        nodes_by_name[name] = min(nodes_by_name.get(name, node), node, key=_rank)
    return [_progress(step, nodes_by_name, nodes) for step in planned]


_ORDER = ("FAILED", "CANCELED", "CANCELING", "RUNNING", "PENDING", "SKIPPED", "SUCCEEDED")


def _rank(node: Node) -> int:
    return _ORDER.index(node.state) if node.state in _ORDER else _ORDER.index("PENDING")


def _progress(step: PlannedStep, nodes_by_name: Mapping[str, Node], nodes: Sequence[Node]) -> StepProgress:
    driver = nodes_by_name.get(f"{step.task}-driver")
    failed = driver is not None and driver.state == "FAILED"  # the step itself never started
    node = driver if failed else nodes_by_name.get(step.task, driver)
    if node is None:
        return StepProgress(step)
    state = "PENDING" if node is driver and node.state == "SUCCEEDED" else node.state
    # The pods hold the error; the node of a retried pod says only that there are no more retries.
    pods = failed_pods(nodes, step.task)
    error = next((pod.message for pod in pods if pod.message), node.message) if state == "FAILED" else ""
    return StepProgress(step, state, node.start_time, node.end_time if state in ENDED else None, error)


def _time(value: datetime | None) -> datetime | None:
    """Return a time, or None for the time long past that Kubeflow reports for a future event."""
    return value if value and value.year > 1970 else None
