"""Follows a run until it has ended."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evasion.pipelines.preflight import Step
from evasion.pipelines.submit.host import Host, UnreachableError

INTERVAL = 3.0  # seconds between two looks
PATIENCE = 600.0  # seconds without any answer

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class TimeUpError(RuntimeError):
    """The run has not ended in time; it goes on."""


@dataclass(frozen=True)
class Progress:
    """How far a step is.

    Attributes:
        step: The step.
        state: As Kubeflow names it: PENDING, RUNNING, SUCCEEDED, FAILED, SKIPPED, CANCELED …; blank before it begins.
        started: When it began.
        ended: When it ended.
        error: What Kubeflow says went wrong.
    """

    step: Step
    state: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    error: str = ""

    def seconds(self, now: datetime) -> float:
        """How long it has taken until it ended, or until now."""
        return max(0.0, ((self.ended or now) - self.started).total_seconds()) if self.started else 0.0


class Listener:
    """Is told how a run goes. Every method does nothing until a subclass gives it something to do."""

    def changed(self, steps: Sequence[Progress]) -> None:
        """Hear how far all steps are, at every look."""

    def silent(self, error: str) -> None:
        """Hear that the host did not answer and is asked again."""


def until_ended(
    host: Host,
    run_id: str,
    planned: Sequence[Step],
    listener: Listener,
    *,
    deadline: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Any:
    """Return a run once it has ended.

    Args:
        host: Where it runs.
        run_id: Which run.
        planned: The steps to tell of.
        listener: Is told how they go.
        deadline: When to give up, by the clock.
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
            listener.changed(progress(run, planned))
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


def progress(run: Any, planned: Sequence[Step]) -> list[Progress]:
    """Return how far each step is.

    Kubeflow tells of every node of its workflow, drivers and executors among them; a step's own bears its name.
    """
    nodes: dict[str, Any] = {}
    for detail in (run.run_details.task_details if run.run_details else None) or ():
        name = str(detail.display_name)
        # In a loop several nodes bear it: the step is where the one is that has come the least far.
        nodes[name] = min(nodes.get(name, detail), detail, key=_how_far)
    return [_progress(step, nodes) for step in planned]


_ORDER = ("FAILED", "CANCELED", "CANCELING", "RUNNING", "PENDING", "SKIPPED", "SUCCEEDED")


def _how_far(node: Any) -> int:
    return _ORDER.index(node.state) if node.state in _ORDER else _ORDER.index("PENDING")


def _progress(step: Step, nodes: Mapping[str, Any]) -> Progress:
    driver = nodes.get(f"{step.task}-driver")
    failed = driver is not None and driver.state == "FAILED"  # so that it never came to the step itself
    node: Any = driver if failed else nodes.get(step.task, driver)
    if node is None:
        return Progress(step)
    state = str(node.state or "")
    if node is driver and state == "SUCCEEDED":
        state = "PENDING"
    ended = _time(node.end_time) if state in ENDED else None
    return Progress(step, state, _time(node.start_time or node.create_time), ended, _error(node))


def _time(value: datetime | None) -> datetime | None:
    """Return a time; Kubeflow writes one that has not come as one long past."""
    return value if value and value.year > 1970 else None


def _error(detail: Any) -> str:
    return str(detail.error.message or "") if detail.error else ""
