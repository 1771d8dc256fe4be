"""A way to services of a cluster through `kubectl port-forward`, opened again when it breaks."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 30.0  # seconds to open
ANSWER = "10s"  # how long kubectl asks the cluster for an object
PAUSE = 1.0  # seconds before it is opened again
_OPEN = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


class ForwardError(RuntimeError):
    """There is no way to the service."""


@contextmanager
def forwarded(service: str, namespace: str, port: int) -> Iterator[str]:
    """Yield an address at which a service of the cluster answers for a block.

    Raises:
        ForwardError: kubectl is missing, does not reach the service, or no pod stands behind it.
    """
    kubectl = _kubectl()
    # kubectl would wait for a pod, and say nothing.
    if _pods_missing(service, namespace):
        raise ForwardError(
            f"Service {namespace}/{service} has no ready pod. See: kubectl --namespace {namespace} get pods"
        )
    command = [kubectl, "port-forward", "--namespace", namespace, "--address", "127.0.0.1", f"service/{service}"]
    way = _Way(command, port)
    try:
        yield f"http://127.0.0.1:{way.open()}"
    finally:
        way.close()


def _pods_missing(service: str, namespace: str) -> bool:
    """Tell whether no pod of a service is ready; not where kubectl may not ask, or does not find the service."""
    selector = f"--selector=kubernetes.io/service-name={service}"
    slices = (_got("endpointslices", selector, namespace=namespace) or {}).get("items", [])
    # An endpoint that does not say whether it is ready counts as ready, as everywhere in Kubernetes.
    ready = [
        endpoint.get("conditions", {}).get("ready") is not False
        for one in slices
        for endpoint in one.get("endpoints") or ()
    ]
    return bool(slices) and not any(ready)


def _got(*what: str, namespace: str) -> dict[str, Any] | None:
    """Return objects of the cluster; nothing where kubectl may not see them."""
    command = [_kubectl(), "get", *what, "--namespace", namespace, "--output", "json", "--request-timeout", ANSWER]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    try:
        found = json.loads(result.stdout) if result.returncode == 0 else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise ForwardError("--port-forward needs kubectl, and there is none on the PATH.")
    return found


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
            raise ForwardError(f"{' '.join(self._command[1:])} does not come up: {said}")
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
