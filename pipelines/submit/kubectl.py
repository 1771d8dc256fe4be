"""What kubectl knows of the cluster of its context."""

import base64
import json
import shutil
import subprocess
from typing import Any

ANSWER = "10s"  # how long it asks the cluster


class KubectlError(RuntimeError):
    """There is no kubectl, or no way through it."""


def path() -> str:
    """Return where kubectl is.

    Raises:
        KubectlError: It is missing.
    """
    found = shutil.which("kubectl")
    if found is None:
        raise KubectlError("--port-forward needs kubectl, and there is none on the PATH.")
    return found


def lacks_pods(service: str, namespace: str) -> bool:
    """Tell whether no pod of a service is ready; not where kubectl may not ask, or does not find the service.

    Raises:
        KubectlError: kubectl is missing.
    """
    slices = _got("endpointslices", f"--selector=kubernetes.io/service-name={service}", namespace).get("items", [])
    # An endpoint that does not say whether it is ready counts as ready, as everywhere in Kubernetes.
    ready = [
        endpoint.get("conditions", {}).get("ready") is not False
        for one in slices
        for endpoint in one.get("endpoints") or ()
    ]
    return bool(slices) and not any(ready)


def secret(name: str, namespace: str) -> dict[str, str]:
    """Return the values of a Secret by their keys; nothing where there is none or kubectl may not see it.

    Raises:
        KubectlError: kubectl is missing.
    """
    found = _got("secret", name, namespace).get("data") or {}
    return {key: base64.b64decode(value).decode() for key, value in found.items()}


def _got(kind: str, which: str, namespace: str) -> dict[str, Any]:
    """Return an object of the cluster, or a list of some; an empty one where kubectl does not show it."""
    command = [path(), "get", kind, which, "--namespace", namespace, "--output", "json", "--request-timeout", ANSWER]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    try:
        found = json.loads(result.stdout) if result.returncode == 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
