"""Which process or workflow has opened a run, and whether it still runs."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from evasion.components.common.tracking.workflows import this_workflow, workflow_has_ended

PROCESS = "evasion.process"
"""The tag of a pipeline's run on this machine, and of every run in Kubeflow."""


def this_process() -> str:
    """Return the host, the id and the start time of this process; in Kubeflow what identifies the workflow."""
    own = {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}
    return json.dumps(this_workflow() or own)


def has_ended(process: str) -> bool:
    """Return whether a process or a workflow has ended.

    False for a process of another machine, a workflow of another cluster, and for a blank text.
    """
    try:
        known = json.loads(process)
        if "cluster" in known:
            return workflow_has_ended(known)
        if known["host"] != _host():
            return False
        return bool(_started(int(known["pid"])) != known["started"])
    except (ValueError, KeyError, TypeError):
        return False


def _host() -> str:
    """Return the name of this machine, and of the namespace in which process ids mean something: a container's own."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()} {namespace}".strip()


def _started(pid: int) -> str:
    """Return when a process started, in the units of its system; `""` if there is none of this id."""
    try:
        # The name of the program, in brackets, may contain anything. The start is the 22nd field.
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return _alive(pid)
    return "" if state == "Z" else fields[18]


def _alive(pid: int) -> str:
    """Return "running" for a process where the system has no /proc."""
    if Path("/proc/self").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
