"""The log of a failed step.

The run's workflow names the pods. Where a host does not show it, Kubeflow's API names a step's executor by its node in
Argo's workflow, and a try of several not at all: Argo makes both a node's id and its pod's name of the workflow's name
and a hash of the path to the node, which the compiled pipeline tells.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evasion.pipelines.submit.host import Host, HostError
from evasion.pipelines.submit.workflow import Node, failed_pods

RETRIES = 2  # of Kubeflow's own Argo, for a step that says nothing of it

# Of a traceback's last line: the class, perhaps within a module, and the message.
_RAISED = re.compile(r"(?:[a-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit): (.+)")


def of_failed(host: Host, run: Any, nodes: Sequence[Node], spec: Mapping[str, Any], task: str) -> tuple[str, list[str]]:
    """Return the pod of a failed step and the last lines of its log, the last try's.

    Args:
        host: Where it ran.
        run: The run, as the API tells of it.
        nodes: The nodes of its workflow; those without a pod are not asked for.
        spec: The compiled pipeline.
        task: The step's name there.

    Raises:
        HostError: Kubeflow does not show it.
    """
    failed: HostError = HostError("Kubeflow does not say which pod it was")
    for pod in [node.pod for node in failed_pods(nodes, task)] or _pods(run, spec, task):
        try:
            return pod, host.log(run.run_id, pod)
        except HostError as error:
            failed = error
    raise failed


def raised(lines: Sequence[str]) -> str:
    """Return the message of the last error that a log tells of; blank where there is none."""
    messages = [match[1] for line in lines if (match := _RAISED.fullmatch(line.strip()))]
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
    workflow = _workflow(details)
    named = [detail for detail in details if detail.display_name in (task, f"{task}-driver")]
    failed = {child.pod_name for detail in named if detail.state == "FAILED" for child in detail.child_tasks or ()}
    # Kubeflow's own Argo tries every node again, so that each level of a path has the number of the try behind it.
    for again in ("(0)", ""):
        root = f"{workflow}{again}.root{again}"
        paths = [*_paths(spec, spec["root"]["dag"], root, task, len(named), again)] if workflow else []
        # Of the rounds of a loop, those that failed.
        there = [
            one
            for one in paths
            if not failed.isdisjoint(f"{workflow}-{_hash(one[0] + end)}" for end in ("", again, f"{again}.executor"))
        ]
        for path, retries in there or paths:
            template = "system-container-impl" if retries is None else "retry-system-container-impl"
            tries = range(RETRIES if retries is None and again else retries or 0, -1, -1)
            for end in [""] if retries is None and not again else [f"({number})" for number in tries]:
                yield f"{workflow}-{template}-{_hash(f'{path}{again}.executor{end}')}"
            yield f"{workflow}-system-container-driver-{_hash(f'{path}-driver{again}')}"
    yield from children


def _workflow(details: list[Any]) -> str:
    """Return the workflow's name, with which the id of every node begins."""
    ids = (child.pod_name for detail in details for child in detail.child_tasks or () if child.pod_name)
    return next((name.rpartition("-")[0] for name in ids), "")


def _paths(
    spec: Mapping[str, Any], dag: Mapping[str, Any], above: str, wanted: str, rounds: int, again: str
) -> Iterator[tuple[str, int | None]]:
    """Yield the path of each task of a name through the graphs, and how often it is tried again; None for once.

    A loop is looked through up to its `rounds`-th round.
    """
    for name, task in dag.get("tasks", {}).items():
        inner = spec["components"][task["componentRef"]["name"]]
        if name == wanted:
            yield f"{above}.{name}", int(task["retryPolicy"]["maxRetryCount"]) if "retryPolicy" in task else None
        if "dag" not in inner:
            continue
        inside = [f"{above}.{name}{again}"]
        if "parameterIterator" in task:
            inside = [
                f"{above}.{name}{again}.iteration-iterations({n}:{n}){again}.iteration-item{again}"
                for n in range(rounds)
            ]
        for graph in inside:
            yield from _paths(spec, inner["dag"], graph, wanted, rounds, again)


def _hash(text: str) -> int:
    """Return the 32-bit FNV-1a hash of a text."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value
