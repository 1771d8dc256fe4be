"""Runs one step as a process, line by line, and tells how it failed."""

import functools
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

GRACE = 10.0  # seconds that an interrupted step gets to end by itself
KEPT_LINES = 400  # of the end of the output, in which the error is looked for
SHOWN_LINES = 20  # of an error that is longer

# Errors whose text says it all: broken rules, and this package's own.
_TELLING = re.compile(r"\A(ValueError|evasion\.[\w.]+): ")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(text: str) -> str:
    """Return a text without the codes that colour it."""
    return _ANSI.sub("", text)


def run(command: Sequence[str], environment: Mapping[str, str], hear: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run a command to its end; if this process is interrupted, end the command first.

    Args:
        command: The command and its arguments.
        environment: All its variables; its folder for temporary files is added, and removed afterwards.
        hear: Is given every line that it prints, without colours.

    Returns:
        The exit status, and the last lines that it printed.
    """
    last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    def take(line: str) -> None:
        last_lines.append(plain(line).rstrip())
        hear(last_lines[-1])

    with (
        # The command that kfp compiles leaves a folder behind, as does any step that is killed.
        tempfile.TemporaryDirectory(prefix="evasion-") as temporary,
        subprocess.Popen(  # noqa: S603 - the command is ours
            command,
            env={**environment, "TMPDIR": temporary},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            # A Ctrl-C in the terminal reaches this process alone, which then ends the command in order.
            start_new_session=True,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                take(line)
        except BaseException:
            _stop(process, take)
            raise
    return process.returncode, list(last_lines)


def _stop(process: subprocess.Popen[str], take: Callable[[str], None]) -> None:
    """Interrupt a step, so that it can close its MLflow run, and end it if that takes too long."""
    kill = functools.partial(_signal_group, process.pid, signal.SIGKILL)
    timer = threading.Timer(GRACE, kill)
    timer.start()
    try:
        _signal_group(process.pid, signal.SIGINT)
        for line in process.stdout or ():
            take(line)
    finally:
        timer.cancel()
        kill()


def _signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to all processes of a step that are left."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def error(lines: Sequence[str], code: int) -> str:
    """Return a failed step's own error: the message of the last exception, or how the process ended.

    Args:
        lines: The last lines that it printed.
        code: Its exit status.
    """
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    raised = list(lines[starts[-1] + 1 :]) if starts else []
    # The frames are indented, the exception is not; what follows it is the rest of a message of several lines.
    while raised and (not raised[0] or raised[0][0].isspace()):
        raised = raised[1:]
    if raised:
        message = "\n".join(raised[:SHOWN_LINES]).strip()
        return _TELLING.sub("", message)
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "killed by the system, most likely because memory ran out"
    said = next((line for line in reversed(lines) if line), "")
    return f"ended with status {code}{f' after printing: {said}' if said else ''}"
