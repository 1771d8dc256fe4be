"""Queries to the cluster of kubectl's context."""

import base64
import json
import shutil
import subprocess
from typing import Any

REQUEST_TIMEOUT = "10s"


class KubectlError(RuntimeError):
    """kubectl is missing or failed."""


def path() -> str:
    """Return the path of kubectl.

    Raises:
        KubectlError: kubectl is missing.
    """
    program = shutil.which("kubectl")
    if program is None:
        raise KubectlError("--port-forward needs kubectl, which is not on the PATH.")
    return program


def lacks_pods(service: str, namespace: str) -> bool:
    """Return whether no pod of a service is ready; False if kubectl may not read it or the service is missing.

    Raises:
        KubectlError: kubectl is missing.
    """
    slices = _get("endpointslices", f"--selector=kubernetes.io/service-name={service}", namespace).get("items", [])
    # An endpoint without the condition `ready` counts as ready, as everywhere in Kubernetes.
    ready = [
        endpoint.get("conditions", {}).get("ready") is not False
        for endpoint_slice in slices
        for endpoint in endpoint_slice.get("endpoints") or ()
    ]
    return bool(slices) and not any(ready)


def secret(name: str, namespace: str) -> dict[str, str]:
    """Return the values of a Secret by key; empty if it does not exist or kubectl may not read it.

    Raises:
        KubectlError: kubectl is missing.
    """
    encoded = _get("secret", name, namespace).get("data") or {}
    return {key: base64.b64decode(value).decode() for key, value in encoded.items()}


def _get(kind: str, selector: str, namespace: str) -> dict[str, Any]:
    """Return an object of the cluster, or a list of objects; empty if kubectl does not show it."""
    options = ["--namespace", namespace, "--output", "json", "--request-timeout", REQUEST_TIMEOUT]
    command = [path(), "get", kind, selector, *options]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    try:
        answer = json.loads(result.stdout) if result.returncode == 0 else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
