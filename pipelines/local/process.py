"""Runs steps as processes, passes on their output line by line, and extracts their errors."""

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

GRACE = 10.0  # seconds for an interrupted step to end by itself
KEPT_LINES = 400  # last lines of the output that are searched for the error
SHOWN_LINES = 20  # longest error message, in lines

# Classes of errors whose message is enough: invalid arguments, and this package's own errors.
_SELF_EXPLANATORY = re.compile(r"\A(ValueError|evasion\.[\w.]+): ")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(text: str) -> str:
    """Return a text without colour codes."""
    return _ANSI.sub("", text)


class ProcessLauncher:
    """Runs steps as forks of one process that has imported their modules (see `zygote`); a context manager.

    Args:
        environment: The environment variables of that process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            self._zygote = subprocess.Popen(  # noqa: S603 - the command is ours
                [sys.executable, "-m", "evasion.pipelines.local.zygote", str(theirs.fileno())],
                env={**environment, "_KFP_RUNTIME": "true"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C in the terminal reaches only this process, which then ends the steps in order.
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
        self, command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> tuple[int, list[str]]:
        """Run a command to its end; if this process is interrupted, end the command first.

        Args:
            command: The command and its arguments.
            environment: All its variables. A folder for temporary files is added, and removed afterwards.
            on_line: Called with every line of output, without colours.

        Returns:
            The exit status, and the last lines of output.
        """
        last_lines: deque[str] = deque(maxlen=KEPT_LINES)

        def process_line(line: str) -> None:
            last_lines.append(plain(line).rstrip())
            on_line(last_lines[-1])

        # The command that kfp compiles leaves a temporary folder behind, as does any step that is killed.
        with tempfile.TemporaryDirectory(prefix="evasion-") as temporary, ExitStack() as stack:
            request = Path(temporary, "request.json")
            content = {"command": list(command), "environment": {**environment, "TMPDIR": temporary}}
            request.write_text(json.dumps(content), encoding="utf-8")
            output, status = stack.enter_context(_pipe()), stack.enter_context(_pipe())
            group = 0
            try:
                with self._lock:
                    with output.write_end, status.write_end, suppress(BrokenPipeError):
                        descriptors = [output.write_end.fileno(), status.write_end.fileno()]
                        socket.send_fds(self._socket, [str(request).encode()], descriptors)
                    group = int(status.read_end.readline() or 0)
                for line in output.read_end:
                    process_line(line)
            except BaseException:
                if not group:  # requested, and possibly started
                    self._end()
                    group = int(status.read_end.readline() or 0)
                if group:
                    _stop(group, output.read_end, status.read_end, process_line)
                raise
            # Without a status, the process that reports it was killed as well.
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


def _stop(group: int, output: Iterable[str], status: IO[str], process_line: Callable[[str], None]) -> None:
    """Interrupt a step, so that it can close its MLflow run, and kill it if that takes too long."""
    kill = functools.partial(_signal_group, group, signal.SIGKILL)
    timer = threading.Timer(GRACE, kill)
    timer.start()
    try:
        _signal_group(group, signal.SIGINT)
        for line in output:
            process_line(line)
        # The leader of the group ignores the interrupt: it reports the end of the step, or nothing if it is killed.
        status.readline()
    finally:
        timer.cancel()
        kill()  # processes that the step left running


def _signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to all remaining processes of a step."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def error(lines: Sequence[str], code: int) -> str:
    """Return the error of a failed step: the message of its last exception, or how its process ended.

    Args:
        lines: The last lines of its output.
        code: Its exit status.
    """
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    message_lines = list(lines[starts[-1] + 1 :]) if starts else []
    # Frames are indented, the exception is not; the lines after it continue its message.
    while message_lines and (not message_lines[0] or message_lines[0][0].isspace()):
        message_lines = message_lines[1:]
    if message_lines:
        message = "\n".join(message_lines[:SHOWN_LINES]).strip()
        return _SELF_EXPLANATORY.sub("", message)
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "killed by the system, most likely because it ran out of memory"
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return "ended by the signal SIGTERM of another process"
    last_line = next((line for line in reversed(lines) if line), "")
    return f"exited with status {code}{f' after printing: {last_line}' if last_line else ''}"
