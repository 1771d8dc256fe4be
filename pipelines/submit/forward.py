"""Connections to services of a cluster through `kubectl port-forward`, reopened when they break."""

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from evasion.pipelines.submit import kubectl

OPEN_TIMEOUT = 30.0  # seconds
PAUSE = 1.0  # seconds before a connection is reopened
_OPEN = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


@contextmanager
def forwarded(service: str, namespace: str, port: int) -> Iterator[str]:
    """Yield a local address that is forwarded to a service of the cluster.

    Raises:
        KubectlError: kubectl is missing or does not reach the service, or the service has no ready pod.
    """
    program = kubectl.path()
    # kubectl would wait for a pod silently.
    if kubectl.lacks_pods(service, namespace):
        raise kubectl.KubectlError(
            f"Service {namespace}/{service} has no ready pod. See: kubectl --namespace {namespace} get pods"
        )
    command = [program, "port-forward", "--namespace", namespace, "--address", "127.0.0.1", f"service/{service}"]
    forwarding = _Forwarding(command, port)
    try:
        yield f"http://127.0.0.1:{forwarding.open()}"
    finally:
        forwarding.close()


class _Forwarding:
    """A process of kubectl, and a thread that restarts it."""

    def __init__(self, command: list[str], port: int) -> None:
        self._command = command
        self._port = port
        self._local_port = 0
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._output: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._keep_open, daemon=True)

    def open(self) -> int:
        """Wait for the connection and return its local port."""
        self._thread.start()
        self._ready.wait(OPEN_TIMEOUT)
        if not self._local_port:
            output = " ".join(self._output).strip() or "kubectl printed nothing"
            raise kubectl.KubectlError(f"Could not open {' '.join(self._command[1:])}: {output}")
        return self._local_port

    def close(self) -> None:
        """End the process."""
        self._closed.set()
        if self._process:
            self._process.terminate()
        if self._thread.ident:
            self._thread.join()

    def _keep_open(self) -> None:
        while not self._closed.is_set():
            # In a session of its own, so that Ctrl-C does not reach it: it may be needed to terminate the run.
            with subprocess.Popen(  # noqa: S603
                [*self._command, f"{self._local_port or ''}:{self._port}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            ) as self._process:
                if self._closed.is_set():  # closed while kubectl was starting
                    self._process.terminate()
                for line in self._process.stdout or ():
                    if match := _OPEN.search(line):
                        self._local_port = int(match[1])
                        self._ready.set()
                    elif not self._local_port:
                        self._output.append(line.strip())
            if not self._local_port:
                self._ready.set()  # kubectl failed to open the connection: there is nothing to wait for
                return
            self._closed.wait(PAUSE)
