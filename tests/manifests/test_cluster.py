"""The manifests in a real API server of Kubernetes, which admits the same objects as in a cluster.

There are no nodes, so no pod starts, and no controllers: the tests write what controllers would write.
"""

import base64
import json
import secrets
import subprocess
import threading
import time

import pods
import pytest
import yaml
from pods import KUBECTL, ROOT
from ports import reserved_port

from evasion.pipelines.placement import Placement

pytestmark = pytest.mark.cluster

OVERLAYS = ("air-gapped", "gke", "gpu-operator", "local")
PROGRAM = ROOT / "build" / "cluster" / "kube-apiserver"  # built by `make test-cluster`
# On GKE a pod that requests a resource tolerates the taint of nodes with that resource.
PLUGINS = "ExtendedResourceToleration"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Options with which kubectl connects to a new API server as its administrator."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "etcd").symlink_to(PROGRAM)
    with reserved_port() as store, reserved_port() as peer, reserved_port() as server:
        yield from serving(folder, store, peer, server)


def serving(folder, *ports):
    """Run etcd and an API server at three ports, and yield what the fixture gives."""
    store, peer, server = (f"http://127.0.0.1:{port}" for port in ports)
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    etcd = [folder / "etcd", f"--data-dir={folder / 'store'}", "--unsafe-no-fsync", f"--listen-peer-urls={peer}"]
    api = [
        *(PROGRAM, f"--etcd-servers={store}", f"--cert-dir={folder / 'certificates'}", "--bind-address=127.0.0.1"),
        *(f"--secure-port={ports[2]}", f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC"),
        *("--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24"),
        *(f"--service-account-signing-key-file={key}", f"--service-account-key-file={key}"),
        f"--enable-admission-plugins={PLUGINS}",
        # Required by KFP's API server.
        "--api-audiences=https://kubernetes.default.svc,pipelines.kubeflow.org",
    ]
    options = [f"--server={server.replace('http:', 'https:')}", f"--token={token}", "--insecure-skip-tls-verify"]
    options.append(f"--cache-dir={folder / 'cache'}")
    with (folder / "log").open("w") as log:
        started = [
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
            for command in ([*etcd, f"--listen-client-urls={store}", f"--advertise-client-urls={store}"], api)
        ]
        try:
            deadline = time.monotonic() + 60
            while subprocess.run([KUBECTL, *options, "get", "--raw=/readyz"], capture_output=True).returncode:
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.3)
            yield options
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


@pytest.fixture(scope="session")
def ask(cluster):
    """Sends a request to the API server through kubectl; returns whether it succeeded, and kubectl's output."""

    def ask(*arguments, sent=None):
        body = None if sent is None else json.dumps(sent)
        command = [KUBECTL, *cluster, *map(str, arguments)]
        done = subprocess.run(command, input=body, text=True, capture_output=True)
        return done.returncode == 0, done.stdout + done.stderr

    return ask


@pytest.fixture(scope="module", params=OVERLAYS)
def applied(request, ask, tmp_path_factory):
    """An overlay, applied to a namespace of its name that admits only restricted pods."""
    overlay = request.param
    manifests = pods.copy(tmp_path_factory.mktemp(overlay) / "manifests")
    file = manifests / "overlays" / overlay / "kustomization.yaml"
    settings = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**settings, "namespace": overlay}))
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": overlay, "labels": labels}}
    assert ask("create", "--filename=-", sent=namespace) == (True, f"namespace/{overlay} created\n")
    succeeded, output = ask("apply", "--kustomize", file.parent)
    assert succeeded, output
    assert "arning" not in output, output
    # In place of the controller: nothing is in use yet.
    succeeded, quota = ask("get", "resourcequota", "evasion", "--namespace", overlay, "--output=json")
    if succeeded:
        hard = json.loads(quota)["spec"]["hard"]
        status = json.dumps({"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}})
        succeeded, output = ask(
            "patch", "resourcequota", "evasion", "-n", overlay, "--subresource=status", "-p", status
        )
        assert succeeded, output
    return overlay, file.parent


def pod(spec, labels=None):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried", "labels": labels or {}}, "spec": spec}


def step(**resources):
    """A step's pod, as Kubeflow creates it."""
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    container = {
        "name": "main",
        "image": "evasion-pipelines:0.2.0",
        "securityContext": {**context, "seccompProfile": {"type": "RuntimeDefault"}},
        "resources": {"requests": resources, "limits": resources},
    }
    account = {"serviceAccountName": "evasion-submit", "automountServiceAccountToken": False}
    return pod({"containers": [container], **account})


@pytest.fixture
def admit(ask, applied):
    """Returns the admitted pod, or the error message of the server."""

    def admit(candidate):
        overlay, _ = applied
        succeeded, output = ask("create", "--dry-run=server", "-n", overlay, "-f", "-", "-o", "json", sent=candidate)
        return json.loads(output) if succeeded else output

    return admit


def test_the_server_has_what_was_applied(ask, applied):
    assert ask("diff", "--kustomize", applied[1]) == (True, "")


def test_pods_are_admitted_as_restricted_ones(ask, applied, admit):
    overlay, folder = applied
    objects = list(yaml.safe_load_all(subprocess.run([KUBECTL, "kustomize", folder], capture_output=True).stdout))
    workloads = [item for item in objects if item["kind"] in ("Deployment", "StatefulSet")]
    assert len(workloads) == (2 if overlay == "gke" else 3)
    for workload in workloads:
        template = pods.template(workload)
        claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())]
        volumes = template["spec"]["volumes"] + [{"name": name, "emptyDir": {}} for name in claims]
        spec = {**template["spec"], "volumes": volumes}
        admitted = admit(pod(spec, template["metadata"]["labels"]))
        assert admitted["spec"]["containers"][0]["image"] == template["spec"]["containers"][0]["image"], admitted
        root = {**spec, "securityContext": {**spec["securityContext"], "runAsNonRoot": False}}
        assert 'violates PodSecurity "restricted' in admit(pod(root))


def test_steps_get_gpus_in_overlays_with_gpus(applied, admit):
    overlay, _ = applied
    gpu = Placement().gpu_type
    plain = {"cpu": f"{Placement().cpus:g}", "memory": f"{Placement().memory:g}Gi"}
    assert admit(step(**plain))["metadata"]["namespace"] == overlay
    admitted = admit(step(**plain, **{gpu: "1"}))
    too_many = admit(step(**plain, **{gpu: "5"}))
    if overlay == "local":
        assert admitted["kind"] == too_many["kind"] == "Pod"
    elif overlay == "air-gapped":
        assert "exceeded quota: evasion" in admitted
    else:
        assert admitted["spec"]["containers"][0]["resources"]["limits"][gpu] == "1"
        refused = "exceeded quota: evasion" if overlay == "gke" else f"maximum {gpu} usage per Container is 4"
        assert refused in too_many


def test_a_step_without_resources_gets_some_but_no_gpu(applied, admit):
    overlay, _ = applied
    admitted = admit(step())
    limits = admitted["spec"]["containers"][0]["resources"].get("limits", {})
    assert limits.get("memory") == (None if overlay == "local" else "1Gi")
    assert limits.get(Placement().gpu_type, "0") == "0"
    if overlay == "gke":
        # Otherwise steps without GPUs could be placed on nodes with GPUs.
        tolerations = admitted["spec"].get("tolerations", ())
        assert Placement().gpu_type not in [toleration["key"] for toleration in tolerations]


ALLOWED = {
    **{("pipelines.kubeflow.org", "runs", verb): True for verb in ("create", "get", "list", "terminate")},
    **{("pipelines.kubeflow.org", "pipelines", verb): True for verb in ("create", "get", "list")},
    **{("pipelines.kubeflow.org", "experiments", verb): True for verb in ("create", "get", "list")},
    **{("pipelines.kubeflow.org", "jobs", verb): True for verb in ("create", "list")},
    ("kubeflow.org", "viewers", "get"): True,
    ("pipelines.kubeflow.org", "runs", "delete"): False,
    ("pipelines.kubeflow.org", "pipelines", "delete"): False,
    ("", "secrets", "get"): False,
    ("", "pods", "create"): False,
    ("", "pods/exec", "create"): False,
}


def test_kubeflow_recognizes_ci_and_lets_it_submit(ask, applied):
    """By the reviews that its API server requests: of a token, then of the permissions of its owner."""
    overlay, _ = applied
    audience = "pipelines.kubeflow.org"
    succeeded, token = ask("create", "token", "evasion-submit", "-n", overlay, "--audience", audience)
    assert succeeded, token
    kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
    review = {**kind, "spec": {"token": token.strip(), "audiences": [audience]}}
    status = json.loads(ask("create", "-f", "-", "-o", "json", sent=review)[1])["status"]
    assert status["authenticated"]
    user = status["user"]["username"]
    assert user == f"system:serviceaccount:{overlay}:evasion-submit"

    def allowed(group, resource, verb, namespace):
        wanted = {"group": group, "resource": resource, "verb": verb, "namespace": namespace, "version": "v1beta1"}
        kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
        review = {**kind, "spec": {"user": user, "resourceAttributes": wanted}}
        return json.loads(ask("create", "-f", "-", "-o", "json", sent=review)[1])["status"]["allowed"]

    assert {wanted: allowed(*wanted, overlay) for wanted in ALLOWED} == ALLOWED
    assert not allowed("pipelines.kubeflow.org", "runs", "create", "default")


def test_make_deploy_ends_when_mlflow_runs(ask, cluster, tmp_path):
    for name in (".venv", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    pods.copy(tmp_path / "manifests")
    assert ask("create", "namespace", "kubeflow")[0]
    ended = threading.Event()

    def control():
        """Write the status that the controller writes once MLflow's pod is ready."""
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
        patch = json.dumps({"status": {"observedGeneration": 1, **counts}})
        while not ended.wait(0.5):
            ask("patch", "deployment", "mlflow", "-n", "kubeflow", "--subresource=status", "-p", patch)

    controller = threading.Thread(target=control)
    controller.start()
    try:
        command = ["make", "deploy", f"KUBECTL={' '.join(map(str, [KUBECTL, *cluster]))}"]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=60)
    finally:
        ended.set()
        controller.join()
    assert done.returncode == 0, done.stderr
    assert 'deployment "mlflow" successfully rolled out' in done.stdout
    _, secret = ask("get", "secret", "evasion-mlflow", "-n", "kubeflow", "-o", "json")
    values = {name: base64.b64decode(value).decode() for name, value in json.loads(secret)["data"].items()}
    assert values == pods.VALUES["steps.env"]
