"""A way to services of a cluster through `kubectl port-forward`, opened again when it breaks."""

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from evasion.pipelines.submit import kubectl

PATIENCE = 30.0  # seconds to open
PAUSE = 1.0  # seconds before it is opened again
_OPEN = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


@contextmanager
def forwarded(service: str, namespace: str, port: int) -> Iterator[str]:
    """Yield an address at which a service of the cluster answers for a block.

    Raises:
        KubectlError: kubectl is missing, does not reach the service, or no pod stands behind it.
    """
    program = kubectl.path()
    # kubectl would wait for a pod, and say nothing.
    if kubectl.lacks_pods(service, namespace):
        raise kubectl.KubectlError(
            f"Service {namespace}/{service} has no ready pod. See: kubectl --namespace {namespace} get pods"
        )
    command = [program, "port-forward", "--namespace", namespace, "--address", "127.0.0.1", f"service/{service}"]
    way = _Way(command, port)
    try:
        yield f"http://127.0.0.1:{way.open()}"
    finally:
        way.close()


class _Way:
    """The process, and a thread that starts it again."""

    def __init__(self, command: list[str], port: int) -> None:
        self._command = command
        self._port = port
        self._local = 0
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._said: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def open(self) -> int:
        """Wait for the way and return its port on this machine."""
        self._thread.start()
        self._ready.wait(PATIENCE)
        if not self._local:
            said = " ".join(self._said).strip() or "it says nothing"
            raise kubectl.KubectlError(f"{' '.join(self._command[1:])} does not come up: {said}")
        return self._local

    def close(self) -> None:
        """End the process."""
        self._closed.set()
        if self._process:
            self._process.terminate()
        if self._thread.ident:
            self._thread.join()

    def _keep(self) -> None:
        while not self._closed.is_set():
            # In a session of its own, so that Ctrl-C leaves it: the run may have to be terminated through it.
            with subprocess.Popen(  # noqa: S603
                [*self._command, f"{self._local or ''}:{self._port}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            ) as self._process:
                if self._closed.is_set():  # closed while it was started
                    self._process.terminate()
                for line in self._process.stdout or ():
                    if found := _OPEN.search(line):
                        self._local = int(found[1])
                        self._ready.set()
                    elif not self._local:
                        self._said.append(line.strip())
            if not self._local:
                self._ready.set()  # it failed at once: there is nothing to wait for
                return
            self._closed.wait(PAUSE)
