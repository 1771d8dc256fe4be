"""Whether a run in Kubeflow has ended: Kubernetes knows it of runs whose pods were killed before they could say so."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evasion.components.common.tracking.client import KUBEFLOW_RUN, connection

# A pod's access to Kubernetes. Kubeflow's own service accounts for pipelines may list workflows.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECONDS = 5.0
RUN_LABEL = "pipeline/runid"
ONGOING = "workflows.argoproj.io/completed!=true"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


def this_workflow() -> dict[str, str]:
    """Return the cluster, the namespace and the run in Kubeflow of this pod; nothing outside Kubeflow."""
    run = os.environ.get(KUBEFLOW_RUN)
    try:
        cluster = hashlib.sha256((ACCOUNT / "ca.crt").read_bytes()).hexdigest()
        namespace = (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except OSError:  # a pod may be without access
        return {}
    return {"cluster": cluster, "namespace": namespace, "run": run} if run else {}


def workflow_has_ended(workflow: Mapping[str, Any]) -> bool:
    """Return whether the workflow of a run in Kubeflow has ended or was removed.

    It is not known, and taken to go on, outside the run's cluster and namespace, or if Kubernetes does not show this
    pod's own workflow among those that go on.
    """
    own = this_workflow()
    run = str(workflow["run"])
    elsewhere = not own or any(workflow[key] != own[key] for key in ("cluster", "namespace"))
    if elsewhere or not re.fullmatch("[0-9A-Za-z-]{1,63}", run):  # others may write this tag
        return False
    try:
        ongoing = _ongoing(own["namespace"], {own["run"], run})
    except OSError as error:
        connection.warn(f"runs that killed pods have left open may stay open in MLflow: {error}")
        return False
    return own["run"] in ongoing and run not in ongoing


def _ongoing(namespace: str, runs: set[str]) -> set[str]:
    """Return those of some runs in Kubeflow whose workflows go on.

    Raises:
        OSError: Kubernetes does not answer, or not this question.
    """
    import requests  # type: ignore[import-untyped]

    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    with requests.Session() as session:
        session.trust_env = False  # Kubernetes is not behind the proxy of the buckets, if there is one
        answer = session.get(
            f"https://{host}:{port}/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows",
            params={"labelSelector": f"{RUN_LABEL} in ({','.join(sorted(runs))}),{ONGOING}"},
            headers={
                "Authorization": f"Bearer {(ACCOUNT / 'token').read_text(encoding='utf-8').strip()}",
                "Accept": METADATA_ONLY,
            },
            verify=str(ACCOUNT / "ca.crt"),
            timeout=SECONDS,
        )
        answer.raise_for_status()
        return {str(item["metadata"]["labels"][RUN_LABEL]) for item in answer.json()["items"]}
