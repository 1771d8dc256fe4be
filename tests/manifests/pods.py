"""Rendered manifests: references between objects, and pods as containers of the engine, as the kubelet starts them."""

import base64
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evasion.components.step import IMAGE

Object = Mapping[str, Any]
ROOT = Path(__file__).parents[2]
KUBECTL = ROOT / ".venv" / "bin" / "kubectl"  # of `make test`, which installs it
# Values with characters that need quoting.
VALUES = {
    "steps.env": {"MLFLOW_TRACKING_USERNAME": "evasion", "MLFLOW_TRACKING_PASSWORD": "the steps' $word"},
    "server.env": {
        "MLFLOW_AUTH_ADMIN_PASSWORD": 'the "admin\'s" word',
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the server",
        "PGPASSWORD": "the database's $word; \\",
    },
}


def copy(folder: Path, changed: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Copy the manifests without ignored files, and add sample secrets."""
    shutil.copytree(ROOT / "manifests", folder, ignore=shutil.ignore_patterns("secrets"))
    (folder / "base" / "secrets").mkdir()
    for name, variables in VALUES.items():
        lines = [f"{key}={changed.get(key, value)}\n" for key, value in variables.items()]
        (folder / "base" / "secrets" / name).write_text("".join(lines))
    return folder


def find(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The object of this kind and name."""
    (match,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return match


def template(workload: Object) -> Object:
    """The pod template of a Deployment, a StatefulSet or a Job, or the Pod itself."""
    return workload if workload["kind"] == "Pod" else workload["spec"]["template"]


def containers(workload: Object) -> list[Object]:
    """All containers of a workload, in the order in which they start."""
    spec = template(workload)["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def data(objects: Sequence[Object], kind: str, name: str) -> dict[str, str]:
    """The values of a ConfigMap or a Secret."""
    values = find(objects, kind, name)["data"]
    return {key: base64.b64decode(value).decode() if kind == "Secret" else value for key, value in values.items()}


def environment(objects: Sequence[Object], container: Object) -> dict[str, str]:
    """The environment variables of a container."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        ((kind, reference),) = source.items()
        variables |= data(objects, {"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"])
    for variable in container.get("env", ()):
        if "value" in variable:
            variables[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            variables[variable["name"]] = data(objects, "Secret", reference["name"])[reference["key"]]
    return variables


class Node:
    """Runs the pods of rendered manifests in one network of the container engine.

    Every claim is a volume as the kubelet prepares it for an fsGroup: owned by root, and writable for the group.
    """

    def __init__(self, engine: Any, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self._key = secrets.token_hex(4)
        self._network = engine.networks.create(f"evasion-pods-{self._key}", driver="bridge")
        self._volumes: dict[str, Any] = {}

    def close(self) -> None:
        for container in self._engine.containers.list(all=True, filters={"network": self._network.id}):
            container.remove(force=True)
        self._network.remove()
        for volume in self._volumes.values():
            volume.remove()

    def create(self, objects: Sequence[Object], workload: Object, container: Object) -> Any:
        """Create a container from its manifest without starting it."""
        pod = template(workload)["spec"]
        context = {**pod["securityContext"], **container["securityContext"]}
        volumes, tmpfs = {}, {}
        kinds = {one["name"]: one for one in pod.get("volumes", ())}
        for mount in container.get("volumeMounts", ()):
            # A mount that is not a volume of the pod is a volume claim of a StatefulSet.
            kind = kinds.get(mount["name"], {"persistentVolumeClaim": {"claimName": mount["name"]}})
            mode = "ro" if mount.get("readOnly") else "rw"
            if "emptyDir" in kind:
                tmpfs[mount["mountPath"]] = ""
            elif "configMap" in kind:
                source = self._written(data(objects, "ConfigMap", kind["configMap"]["name"]))
                volumes[str(source)] = {"bind": mount["mountPath"], "mode": mode}
            else:
                claim = kind["persistentVolumeClaim"]["claimName"]
                source = self.volume(claim) or self._new_volume(claim, context["fsGroup"])
                volumes[source.name] = {"bind": mount["mountPath"], "mode": mode}
        service = template(workload)["metadata"]["labels"]["app.kubernetes.io/name"]
        return self._engine.containers.create(
            container["image"],
            container.get("args"),
            entrypoint=container.get("command"),
            environment=environment(objects, container),
            user=f"{context['runAsUser']}:{context['runAsGroup']}",
            group_add=[context["fsGroup"]],
            read_only=context["readOnlyRootFilesystem"],
            cap_drop=context["capabilities"]["drop"],
            security_opt=["no-new-privileges"] * (not context["allowPrivilegeEscalation"]),
            mem_limit=container["resources"]["limits"]["memory"].removesuffix("i").lower(),
            volumes=volumes,
            tmpfs=tmpfs,
            ports={f"{port['containerPort']}/tcp": ("127.0.0.1", None) for port in container.get("ports", ())},
            network=self._network.name,
            networking_config={
                self._network.name: self._engine.api.create_endpoint_config(aliases=[service]),
            },
        )

    @contextmanager
    def running(self, objects: Sequence[Object], workload: Object) -> Iterator[Any]:
        """Run a workload's init containers to their end, then its last container for a block, and yield that one."""
        *init_containers, last = containers(workload)
        for declared in init_containers:
            container = self.create(objects, workload, declared)
            container.start()
            log = b"".join(container.logs(stream=True)).decode()
            assert container.wait()["StatusCode"] == 0, log
        container = self.create(objects, workload, last)
        container.start()
        try:
            yield container
        finally:
            container.stop(timeout=template(workload)["spec"].get("terminationGracePeriodSeconds", 30))
            container.remove(force=True)

    def _written(self, files: Mapping[str, str]) -> Path:
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return folder

    def volume(self, claim: str) -> Any:
        """The volume of a claim; None before a container has used it."""
        return self._volumes.get(claim)

    def _new_volume(self, claim: str, group: int) -> Any:
        volume = self._volumes[claim] = self._engine.volumes.create(f"evasion-pods-{self._key}-{claim}")
        self._engine.containers.run(
            IMAGE,
            ["python3", "-c", f"import os; os.chown('/volume', 0, {group}); os.chmod('/volume', 0o2775)"],
            user="0",
            volumes={volume.name: {"bind": "/volume", "mode": "rw"}},
            remove=True,
        )
        return volume
