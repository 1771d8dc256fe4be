"""The nodes of a run in Argo's workflow.

Kubeflow's API returns neither the messages of nodes nor the names of pods, and no node at all once Argo has compressed
them, as it does in a larger workflow. The workflow itself contains all of this.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# Kubeflow's names of Argo's phases.
STATES = {
    "Pending": "PENDING",
    "Running": "RUNNING",
    "Succeeded": "SUCCEEDED",
    "Failed": "FAILED",
    "Error": "FAILED",
    "Skipped": "SKIPPED",
    "Omitted": "SKIPPED",
}


@dataclass(frozen=True)
class Node:
    """A node of a run.

    Attributes:
        display_name: The task's key in the pipeline, the key with the suffix "-driver", "executor", ….
        state: Kubeflow's state: PENDING, RUNNING, SUCCEEDED, FAILED, SKIPPED, CANCELED, ….
        start_time: The time of its start.
        end_time: The time of its end.
        message: The error message.
        task: The key of the task of a pod; blank if the node is not a pod.
        pod: The pod's name; blank if the node is not a pod.
        is_driver: Whether the pod is the driver of its task.
    """

    display_name: str
    state: str
    start_time: datetime | None = None
    end_time: datetime | None = None
    message: str = ""
    task: str = ""
    pod: str = ""
    is_driver: bool = False


def nodes_of(manifest: str) -> list[Node]:
    """Return the nodes of a workflow in the order in which they started.

    Args:
        manifest: The workflow as JSON.

    Raises:
        ValueError: The manifest is not a workflow.
    """
    try:
        workflow = json.loads(manifest)
        status = workflow.get("status", {})
        nodes = status.get("nodes") or {}
        if compressed := status.get("compressedNodes"):
            nodes = json.loads(gzip.decompress(base64.b64decode(compressed)))
        name = workflow["metadata"]["name"]
        return sorted((_node(name, node) for node in nodes.values()), key=lambda node: str(node.start_time))
    except (AttributeError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"The workflow of the run has an unexpected form: {error!r}") from error


def failed_pods(nodes: Iterable[Node], task: str = "") -> list[Node]:
    """Return the failed pods of a task, or of all tasks if it is blank, the last first."""
    return [node for node in nodes if node.pod and node.state == "FAILED" and task in ("", node.task)][::-1]


def _node(workflow: str, node: Mapping[str, Any]) -> Node:
    task = pod = last = ""
    if node["type"] == "Pod":
        # Each retryable level of the name ends in the number of the try: W(0).root(0).fgm(0).executor(1).
        *parents, last = [re.sub(r"(\(\d+\))+$", "", level) for level in node["name"].split(".")]
        task = parents[-1] if last == "executor" and parents else last.removesuffix("-driver")
        # A node's id is the workflow's name and a hash; a pod's name has the template's name between the two.
        pod = f"{workflow}-{node['templateName']}-{node['id'].rpartition('-')[2]}"
    return Node(
        display_name=node["displayName"],
        state=STATES.get(node.get("phase", ""), "PENDING"),
        start_time=_time(node.get("startedAt")),
        end_time=_time(node.get("finishedAt")),
        message=node.get("message", ""),
        task=task,
        pod=pod,
        is_driver=last.endswith("-driver"),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
