"""What Argo says of the nodes of a run.

Kubeflow's API has no message of a node, no name of a pod, and shows no node at all once Argo has compressed them, as it
does in a larger workflow. The workflow itself has all of it.
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
        display_name: The task's key in the pipeline, or that and "-driver", "executor", ….
        state: As Kubeflow names it: PENDING, RUNNING, SUCCEEDED, FAILED, SKIPPED, CANCELED, ….
        start_time: When it began.
        end_time: When it ended.
        message: What went wrong.
        task: The key of the task that a pod belongs to; blank for what is no pod.
        pod: The pod's name; blank for what is no pod.
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
    """Return the nodes of a workflow, in the order in which they began.

    Args:
        manifest: The workflow as JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        workflow = json.loads(manifest)
        status = workflow.get("status", {})
        nodes = status.get("nodes") or {}
        if compressed := status.get("compressedNodes"):
            nodes = json.loads(gzip.decompress(base64.b64decode(compressed)))
        name = workflow["metadata"]["name"]
        return sorted((_node(name, one) for one in nodes.values()), key=lambda node: str(node.start_time))
    except (AttributeError, KeyError, OSError, EOFError) as error:
        raise ValueError(f"The workflow of the run has another form: {error!r}") from error


def failed_pods(nodes: Iterable[Node], task: str = "") -> list[Node]:
    """Return the pods that failed, of one task or of any, the last first."""
    return [node for node in nodes if node.pod and node.state == "FAILED" and task in ("", node.task)][::-1]


def _node(workflow: str, node: Mapping[str, Any]) -> Node:
    task = pod = last = ""
    if node["type"] == "Pod":
        # A level of the name that is tried again has the number of the try behind it: W(0).root(0).fgm(0).executor(1).
        *above, last = [re.sub(r"(\(\d+\))+$", "", level) for level in node["name"].split(".")]
        task = above[-1] if last == "executor" and above else last.removesuffix("-driver")
        # Argo names a pod as its node, which is the workflow and a hash, with the template between the two.
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
