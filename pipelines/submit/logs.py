"""Fetches the log of a failed step.

The run's workflow contains the names of the pods. If a host does not show it, Kubeflow's API gives only the node of a
step's executor in Argo's workflow, and nothing about single tries. Argo derives both a node's id and its pod's name
from the workflow's name and a hash of the path to the node, and that path follows from the compiled pipeline.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evasion.pipelines.submit.host import Host, HostError
from evasion.pipelines.submit.workflow import Node, failed_pods

RETRIES = 2  # the default of Kubeflow's own Argo, for a step without a retry policy

# The last line of a traceback: the class, possibly with its module, and the message.
_EXCEPTION = re.compile(r"(?:[a-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit): (.+)")


def failed_step_log(
    host: Host, run: Any, nodes: Sequence[Node], spec: Mapping[str, Any], task: str
) -> tuple[str, list[str]]:
    """Return the pod of a failed step's last try and the last lines of its log.

    Args:
        host: The host of the run.
        run: The run, as the API returns it.
        nodes: The nodes of its workflow.
        spec: The compiled pipeline.
        task: The step's task in the compiled pipeline.

    Raises:
        HostError: Kubeflow does not show the log.
    """
    last_error: HostError = HostError("Kubeflow does not report its pod")
    for pod in [node.pod for node in failed_pods(nodes, task)] or _pods(run, spec, task):
        try:
            return pod, host.log(run.run_id, pod)
        except HostError as error:
            last_error = error
    raise last_error


def last_exception(lines: Sequence[str]) -> str:
    """Return the message of the last exception in a log; blank if there is none."""
    messages = [match[1] for line in lines if (match := _EXCEPTION.fullmatch(line.strip()))]
    return messages[-1] if messages else ""


def _pods(run: Any, spec: Mapping[str, Any], task: str) -> Iterator[str]:
    """Yield the pods that may have run a step, the last try first."""
    details = list(run.run_details.task_details or ()) if run.run_details else []
    children = [
        child.pod_name
        for detail in details
        if detail.display_name == task
        for child in detail.child_tasks or ()
        if child.pod_name
    ]
    yield from (detail.pod_name for detail in details if detail.display_name == task and detail.pod_name)
    workflow = _workflow_name(details)
    own_details = [detail for detail in details if detail.display_name in (task, f"{task}-driver")]
    failed = {
        child.pod_name for detail in own_details if detail.state == "FAILED" for child in detail.child_tasks or ()
    }
    # Kubeflow's own Argo may retry every node, so each level of a path ends in the number of the try.
    for suffix in ("(0)", ""):
        root = f"{workflow}{suffix}.root{suffix}"
        paths = [*_paths(spec, spec["root"]["dag"], root, task, len(own_details), suffix)] if workflow else []
        # Of the rounds of a loop, those that failed.
        failed_paths = [
            (path, retries)
            for path, retries in paths
            if not failed.isdisjoint(f"{workflow}-{_hash(path + end)}" for end in ("", suffix, f"{suffix}.executor"))
        ]
        for path, retries in failed_paths or paths:
            template = "system-container-impl" if retries is None else "retry-system-container-impl"
            tries = range(RETRIES if retries is None and suffix else retries or 0, -1, -1)
            for end in [""] if retries is None and not suffix else [f"({number})" for number in tries]:
                yield f"{workflow}-{template}-{_hash(f'{path}{suffix}.executor{end}')}"
            yield f"{workflow}-system-container-driver-{_hash(f'{path}-driver{suffix}')}"
    yield from children


def _workflow_name(details: list[Any]) -> str:
    """Return the workflow's name, with which the ids of all nodes begin."""
    ids = (child.pod_name for detail in details for child in detail.child_tasks or () if child.pod_name)
    return next((name.rpartition("-")[0] for name in ids), "")


def _paths(
    spec: Mapping[str, Any], dag: Mapping[str, Any], parent: str, task_name: str, rounds: int, suffix: str
) -> Iterator[tuple[str, int | None]]:
    """Yield the path of each task of a name through the graphs, and its number of retries; None without a policy.

    Args:
        spec: The compiled pipeline.
        dag: The graph to search.
        parent: The path of the graph.
        task_name: The name of the task.
        rounds: The number of rounds of a loop to search.
        suffix: The end of each level of a path.
    """
    for name, task in dag.get("tasks", {}).items():
        inner = spec["components"][task["componentRef"]["name"]]
        if name == task_name:
            yield f"{parent}.{name}", int(task["retryPolicy"]["maxRetryCount"]) if "retryPolicy" in task else None
        if "dag" not in inner:
            continue
        graphs = [f"{parent}.{name}{suffix}"]
        if "parameterIterator" in task:
            graphs = [
                f"{parent}.{name}{suffix}.iteration-iterations({n}:{n}){suffix}.iteration-item{suffix}"
                for n in range(rounds)
            ]
        for graph in graphs:
            yield from _paths(spec, inner["dag"], graph, task_name, rounds, suffix)


def _hash(text: str) -> int:
    """Return the 32-bit FNV-1a hash of a text."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value
