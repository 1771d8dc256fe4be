"""Which process has opened a run, and whether it still runs."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path

PROCESS = "evasion.process"
"""The tag of a pipeline's run on this machine."""


def this_process() -> str:
    """Return the host, the id and the start time of this process."""
    return json.dumps({"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())})


def has_ended(process: str) -> bool:
    """Return whether a process of this machine has ended; False for one of another machine, and for a blank text."""
    try:
        known = json.loads(process)
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
