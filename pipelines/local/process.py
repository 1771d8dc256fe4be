"""Runs steps as processes, line by line, and tells how they failed."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

GRACE = 10.0  # seconds that an interrupted step gets to end by itself
KEPT_LINES = 400  # of the end of the output, in which the error is looked for
SHOWN_LINES = 20  # of an error that is longer

# Errors whose text says it all: broken rules, and this package's own.
_TELLING = re.compile(r"\A(ValueError|evasion\.[\w.]+): ")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(text: str) -> str:
    """Return a text without the codes that colour it."""
    return _ANSI.sub("", text)


class ProcessLauncher:
    """Starts steps as forks of one process that has their imports done (see `zygote`); a context manager.

    Args:
        environment: The variables under which the imports are made.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._turn = threading.Lock()
        with theirs:
            self._zygote = subprocess.Popen(  # noqa: S603 - the command is ours
                [sys.executable, "-m", "evasion.pipelines.local.zygote", str(theirs.fileno())],
                env={**environment, "_KFP_RUNTIME": "true"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A Ctrl-C in the terminal reaches this process alone, which then ends the steps in order.
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._socket.close()

    def _end(self) -> None:
        self._zygote.kill()
        self._zygote.wait()

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], hear: Callable[[str], None]
    ) -> tuple[int, list[str]]:
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

        # The command that kfp compiles leaves a folder behind, as does any step that is killed.
        with tempfile.TemporaryDirectory(prefix="evasion-") as temporary, ExitStack() as stack:
            request = Path(temporary, "request.json")
            asked = {"command": list(command), "environment": {**environment, "TMPDIR": temporary}}
            request.write_text(json.dumps(asked), encoding="utf-8")
            output, status = stack.enter_context(_pipe()), stack.enter_context(_pipe())
            group = 0
            try:
                with self._turn:
                    with output.write_end, status.write_end, suppress(BrokenPipeError):
                        descriptors = [output.write_end.fileno(), status.write_end.fileno()]
                        socket.send_fds(self._socket, [str(request).encode()], descriptors)
                    group = int(status.read_end.readline() or 0)
                for line in output.read_end:
                    take(line)
            except BaseException:
                if not group:  # asked for, perhaps started
                    self._end()
                    group = int(status.read_end.readline() or 0)
                if group:
                    _stop(group, output.read_end, status.read_end, take)
                raise
            # Without a status, the process that would have told it was killed as well.
            return int(status.read_end.readline() or -signal.SIGKILL), list(last_lines)


class _Pipe(NamedTuple):
    read_end: IO[str]
    write_end: IO[str]


@contextmanager
def _pipe() -> Iterator[_Pipe]:
    """Open a pipe for lines of text."""
    read_end, write_end = os.pipe()
    with (
        os.fdopen(read_end, encoding="utf-8", errors="replace") as reader,
        os.fdopen(write_end, "w", encoding="utf-8") as writer,
    ):
        yield _Pipe(reader, writer)


def _stop(group: int, output: Iterable[str], status: IO[str], take: Callable[[str], None]) -> None:
    """Interrupt a step, so that it can close its MLflow run, and end it if that takes too long."""
    kill = functools.partial(_signal_group, group, signal.SIGKILL)
    timer = threading.Timer(GRACE, kill)
    timer.start()
    try:
        _signal_group(group, signal.SIGINT)
        for line in output:
            take(line)
        # The process that leads the group takes no interrupt: it tells once the step is gone, and nothing if killed.
        status.readline()
    finally:
        timer.cancel()
        kill()  # what the step left running


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
