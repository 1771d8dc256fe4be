"""The rendered objects of every overlay: valid in Kubernetes, consistent with each other, and with least privilege."""

import functools
import ipaddress
import json
import re
import subprocess
from collections import Counter

import kubernetes_validate
import pods
import pytest
import yaml
from pods import ROOT, copy

from evasion.components.step import IMAGE
from evasion.pipelines.placement import CREDENTIALS, Placement

OVERLAYS = ("air-gapped", "gke", "gpu-operator", "local")
# The newest minor version of Kubernetes that the validator supports, and the two before it.
VERSIONS = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))[-3:]
STEP = {"pipelines.kubeflow.org/v2_component": "true"}
GATEWAY = {"app": "istio-ingressgateway"}
# Created manually: it contains the password of a registry.
FOREIGN = {"air-gapped": {"registry"}}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request):
    return request.param


@pytest.fixture(scope="module")
def objects(render, overlay):
    return render(f"overlays/{overlay}")


def objects_of(objects, *kinds):
    return [item for item in objects if item["kind"] in kinds]


def names(objects, *kinds):
    return {item["metadata"]["name"] for item in objects_of(objects, *kinds)}


def workloads(objects):
    return objects_of(objects, "Deployment", "StatefulSet")


def labels(workload):
    return pods.template(workload)["metadata"]["labels"]


def test_every_overlay_is_tested():
    assert {path.parent.name for path in ROOT.glob("manifests/overlays/*/kustomization.yaml")} == set(OVERLAYS)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_of_every_object_is_valid_in_kubernetes(render, version, monkeypatch):
    read = functools.cache(kubernetes_validate.utils.schema_contents)
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", read)
    rendered = [item for overlay in OVERLAYS for item in render(f"overlays/{overlay}")]
    distinct = {json.dumps(item, sort_keys=True): item for item in rendered}
    for item in distinct.values():
        kubernetes_validate.validate(item, version, strict=True)
    assert len(distinct) > 50


def test_the_readme_names_the_tested_versions():
    oldest, _, newest = (kubernetes_validate.utils.major_minor(version) for version in VERSIONS)
    assert f"Kubernetes {oldest} to {newest}." in (ROOT / "manifests/README.md").read_text(encoding="utf-8")


def test_the_validator_rejects_unknown_fields(render):
    deployment = json.loads(json.dumps(pods.find(render("overlays/local"), "Deployment", "mlflow")))
    deployment["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readyProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("command", ["create", "apply"])
def test_kubectl_accepts_every_object(kubectl, discovery, manifests, overlay, objects, command):
    dry = ["--dry-run=client", "--validate=false", "--output=name"]
    accepted = kubectl(command, *dry, *discovery, "--kustomize", manifests / "overlays" / overlay).split()
    assert len(accepted) == len(objects)


def test_all_objects_are_in_the_overlays_namespace(objects, overlay):
    namespace = yaml.safe_load((ROOT / f"manifests/overlays/{overlay}/kustomization.yaml").read_text())["namespace"]
    assert {item["metadata"]["namespace"] for item in objects} == {namespace}
    (binding,) = objects_of(objects, "RoleBinding")
    assert {subject["namespace"] for subject in binding["subjects"]} == {namespace}


def test_the_objects_that_pipelines_expect_exist(objects, overlay):
    expected = Placement()
    (port,) = pods.find(objects, "Service", "mlflow")["spec"]["ports"]
    assert expected.mlflow_uri == f"http://mlflow:{port['port']}"
    assert set(pods.data(objects, "Secret", expected.mlflow_secret)) == set(CREDENTIALS)
    assert (expected.dataset_pvc in names(objects, "PersistentVolumeClaim")) == (overlay != "gke")


def test_steps_on_several_nodes_can_mount_the_data(objects, overlay):
    claims = [
        one["spec"]["accessModes"]
        for one in objects_of(objects, "PersistentVolumeClaim")
        if one["metadata"]["name"] == "evasion-data"
    ]
    assert claims == {"local": [["ReadWriteOnce"]], "gke": []}.get(overlay, [["ReadWriteMany"]])


def test_references_between_objects_are_valid(objects, overlay):
    for workload in workloads(objects):
        spec = pods.template(workload)["spec"]
        assert spec["serviceAccountName"] in names(objects, "ServiceAccount")
        claims = {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", ())}
        volumes = {one["name"] for one in spec["volumes"]} | claims
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in names(objects, "ConfigMap")
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in names(objects, "PersistentVolumeClaim")
        for container in pods.containers(workload):
            assert {one["name"] for one in container["volumeMounts"]} <= volumes
            assert pods.environment(objects, container) or workload["metadata"]["name"] == "evasion-data"
        assert {one["name"] for one in workload["spec"].get("imagePullSecrets", ())} <= FOREIGN.get(overlay, set())
    for account in objects_of(objects, "ServiceAccount"):
        assert {one["name"] for one in account.get("imagePullSecrets", ())} <= FOREIGN.get(overlay, set())
    (binding,) = objects_of(objects, "RoleBinding")
    assert binding["roleRef"]["name"] in names(objects, "Role")
    assert {one["name"] for one in binding["subjects"]} <= names(objects, "ServiceAccount")


def test_selectors_match_existing_pods(objects):
    templates = [labels(workload) for workload in workloads(objects)]

    def selected(selector):
        return [template for template in templates if selector.items() <= template.items()]

    for workload in workloads(objects):
        assert selected(workload["spec"]["selector"]["matchLabels"]) == [labels(workload)]
    for service in objects_of(objects, "Service"):
        assert len(selected(service["spec"]["selector"])) == 1
    for budget in objects_of(objects, "PodDisruptionBudget"):
        assert len(selected(budget["spec"]["selector"]["matchLabels"])) == 1
    for policy in objects_of(objects, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        assert selected(selector) or selector == STEP


def test_services_lead_to_ports_of_containers(objects):
    for service in objects_of(objects, "Service"):
        (workload,) = [one for one in workloads(objects) if service["spec"]["selector"].items() <= labels(one).items()]
        served = {
            port["name"]: port["containerPort"] for one in pods.containers(workload) for port in one.get("ports", ())
        }
        for port in service["spec"]["ports"]:
            # Policies apply to the container's port, clients use the service's: both must be equal.
            assert served[port["targetPort"]] == port["port"]


def test_pods_are_restricted(objects):
    """By the rules of the Pod Security Standard of that name, and stricter."""
    for workload in workloads(objects):
        pod = pods.template(workload)["spec"]
        assert (
            pod["securityContext"].items()
            >= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items()
        )
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod["volumes"]:
            assert volume.keys() - {"name"} < {"configMap", "persistentVolumeClaim", "emptyDir"}
        for container in pods.containers(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_containers_have_resources_and_probes(objects):
    for workload in workloads(objects):
        for container in pods.containers(workload):
            resources = container["resources"]
            assert {"cpu", "memory"} == resources["requests"].keys() == resources["limits"].keys()
            assert container["image"].rpartition("/")[2].startswith(IMAGE)
        for container in pods.template(workload)["spec"]["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_images_come_from_one_registry(objects, overlay):
    containers = [container for workload in workloads(objects) for container in pods.containers(workload)]
    registries = {
        "local": {""},
        "gke": {"europe-west4-docker.pkg.dev/my-project/evasion"},
        "gpu-operator": {"registry.example"},
        "air-gapped": {"registry.example"},
    }
    assert {container["image"].rpartition("/")[0] for container in containers} == registries[overlay]


def may_connect(objects, source, target, port, namespace=None):
    """Return whether policies allow a connection between two pods, both given by their labels.

    Args:
        objects: The overlay's objects.
        source: The labels of the pod that connects.
        target: The labels of the other pod, which is in the overlay's namespace.
        port: The port of the connection.
        namespace: The labels of the source's namespace, if it is another namespace.
    """

    def selects(selector, pod_labels):
        return selector is not None and selector.get("matchLabels", {}).items() <= pod_labels.items()

    def is_peer(peer, pod_labels, pod_namespace):
        if "ipBlock" in peer:
            return False
        in_namespace = (
            pod_namespace is None
            if "namespaceSelector" not in peer
            else selects(peer["namespaceSelector"], pod_namespace or {})
        )
        return in_namespace and selects(peer.get("podSelector", {}), pod_labels)

    def allowed(direction, key, owner, other, other_namespace):
        specs = [policy["spec"] for policy in objects_of(objects, "NetworkPolicy")]
        policies = [
            spec
            for spec in specs
            if direction.capitalize() in spec["policyTypes"] and selects(spec["podSelector"], owner)
        ]
        return not policies or any(
            any(is_peer(peer, other, other_namespace) for peer in rule[key])
            and port in [entry["port"] for entry in rule.get("ports", [{"port": port}])]
            for policy in policies
            for rule in policy.get(direction, ())
        )

    admitted = allowed("ingress", "from", target, source, namespace)
    return admitted and (namespace is not None or allowed("egress", "to", source, target, None))


def test_allowed_and_denied_connections(objects):
    mlflow, postgres = (
        labels(pods.find(objects, kind, name)) for kind, name in (("Deployment", "mlflow"), ("StatefulSet", "postgres"))
    )
    mesh, elsewhere = {"kubernetes.io/metadata.name": "istio-system"}, {"kubernetes.io/metadata.name": "other"}
    stranger = {"app": "notebook"}

    assert may_connect(objects, STEP, mlflow, 5000)
    assert may_connect(objects, GATEWAY, mlflow, 5000, mesh)
    task = yaml.safe_load((ROOT / "manifests/ci/tekton.yaml").read_text())
    assert may_connect(objects, task["metadata"]["labels"], mlflow, 5000)
    assert not may_connect(objects, task["metadata"]["labels"], postgres, 5432)
    assert may_connect(objects, mlflow, postgres, 5432)
    for source, target, port, namespace in (
        (stranger, mlflow, 5000, None),
        (STEP, mlflow, 22, None),
        (STEP, mlflow, 5000, elsewhere),
        (GATEWAY, mlflow, 5000, elsewhere),
        (GATEWAY, mlflow, 5000, None),
        (stranger, mlflow, 5000, mesh),
        (STEP, postgres, 5432, None),
        (stranger, postgres, 5432, None),
        (mlflow, postgres, 5432, elsewhere),
        (GATEWAY, postgres, 5432, mesh),
        (postgres, mlflow, 5000, None),
    ):
        assert not may_connect(objects, source, target, port, namespace), (source, target)


def test_every_pod_has_a_policy_in_both_directions(objects):
    deny = pods.find(objects, "NetworkPolicy", "evasion-deny")["spec"]
    assert deny == {"podSelector": deny["podSelector"], "policyTypes": ["Ingress", "Egress"]}
    for workload in workloads(objects):
        assert deny["podSelector"]["matchLabels"].items() <= labels(workload).items()


def test_only_gke_allows_connections_from_mlflow_to_other_networks(objects, overlay):
    blocks = {
        peer["ipBlock"]["cidr"]
        for policy in objects_of(objects, "NetworkPolicy")
        if policy["spec"]["podSelector"]["matchLabels"] != STEP
        for rule in policy["spec"].get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
    }
    metadata = {"169.254.169.252/32", "169.254.169.254/32"}
    assert blocks - {"169.254.20.10/32"} == ({"0.0.0.0/0", *metadata} if overlay == "gke" else set())


def test_air_gapped_steps_reach_only_private_networks(render):
    objects = render("overlays/air-gapped")
    (rule,) = pods.find(objects, "NetworkPolicy", "evasion-steps")["spec"]["egress"]
    blocks = [peer["ipBlock"]["cidr"] for peer in rule["to"] if "ipBlock" in peer]
    networks = [ipaddress.ip_network(block) for block in blocks]
    assert all(network.is_private for network in networks)
    assert ipaddress.ip_network("10.0.0.0/8") in networks
    assert may_connect(objects, STEP, labels(pods.find(objects, "Deployment", "mlflow")), 5000)


def quantity(text):
    number, unit = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text)).groups()
    return float(number) * {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}[unit]


def total_resources(pipeline):
    """The total requests and limits of the steps of a compiled pipeline."""
    spec, *_ = yaml.safe_load_all((ROOT / f"pipelines/compiled/cpu/{pipeline}.yaml").read_text())
    executors, components = spec["deploymentSpec"]["executors"], spec["components"]
    total = Counter()

    def add(graph):
        for task in graph["dag"]["tasks"].values():
            inner = components[task["componentRef"]["name"]]
            if "dag" in inner:
                add(inner)
            else:
                container = executors[inner["executorLabel"]].get("container", {})
                for name in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit"):
                    total[name] += quantity(container.get("resources", {}).get(f"resource{name}", 0))

    add(spec["root"])
    return total


def test_limits_leave_room_for_an_evaluation(objects, overlay):
    if overlay == "local":  # Kubeflow's own pods are in this namespace
        assert not objects_of(objects, "ResourceQuota", "LimitRange")
        return
    hard = pods.find(objects, "ResourceQuota", "evasion")["spec"]["hard"]
    (limit,) = pods.find(objects, "LimitRange", "evasion")["spec"]["limits"]
    total = total_resources("evaluation_trained")
    containers = [container for workload in workloads(objects) for container in pods.containers(workload)]
    for name, step_limit in (("cpu", Placement().cpus), ("memory", Placement().memory * 2**30)):
        assert step_limit <= quantity(limit["max"][name])
        for kind in ("requests", "limits"):
            servers = sum(quantity(container["resources"][kind][name]) for container in containers)
            steps = total[f"{name.capitalize()}{kind.capitalize().rstrip('s')}"]
            assert steps > step_limit
            assert steps + servers < quantity(hard[f"{kind}.{name}"])


def test_gpus_are_limited_except_in_the_overlay_local(objects, overlay):
    if overlay == "local":
        return
    gpu = Placement().gpu_type
    gpus = int(pods.find(objects, "ResourceQuota", "evasion")["spec"]["hard"][f"requests.{gpu}"])
    assert gpus >= Placement().gpus if overlay in ("gke", "gpu-operator") else gpus == 0
    # Kubernetes applies a maximum without defaults to every container.
    (limit,) = pods.find(objects, "LimitRange", "evasion")["spec"]["limits"]
    in_range = {key for key in ("max", "default", "defaultRequest") if gpu in limit[key]}
    assert in_range == ({"max", "default", "defaultRequest"} if overlay == "gpu-operator" else set())


def test_gke_keeps_artifacts_in_a_bucket_and_no_credentials(render):
    objects = render("overlays/gke")
    mlflow = pods.find(objects, "Deployment", "mlflow")
    assert pods.environment(objects, pods.containers(mlflow)[-1])["MLFLOW_ARTIFACTS_DESTINATION"].startswith("gs://")
    assert "iam.gke.io/gcp-service-account" in pods.find(objects, "ServiceAccount", "mlflow")["metadata"]["annotations"]
    assert not [one for one in pods.template(mlflow)["spec"]["volumes"] if "persistentVolumeClaim" in one]


def test_ci_may_submit_and_follow_runs_and_no_more(objects):
    rules = pods.find(objects, "Role", "evasion-submit")["rules"]
    granted = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    # Only Kubeflow's groups, none of Kubernetes.
    assert {group for group, _, _ in granted} == {"pipelines.kubeflow.org", "kubeflow.org"}
    assert {("pipelines.kubeflow.org", "runs", verb) for verb in ("create", "get", "list", "terminate")} <= granted
    assert not [right for right in granted if right[2] in ("delete", "update", "*") or "*" in right]
    (binding,) = objects_of(objects, "RoleBinding")
    assert [one["name"] for one in binding["subjects"]] == ["evasion-submit"]


def test_git_contains_no_value_of_a_secret(tmp_path):
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True).stdout.split()

    secrets = [f"manifests/base/secrets/{name}.env" for name in ("server", "steps")]
    assert git("check-ignore", *secrets) == secrets
    assert not [path for path in git("ls-files", "manifests") if "secrets" in path]
    for path in [*ROOT.glob("manifests/base/**/*.yaml"), *ROOT.glob("manifests/overlays/**/*.yaml")]:
        assert "Secret" not in [one and one["kind"] for one in yaml.safe_load_all(path.read_text())], path


def test_without_secrets_kubectl_names_the_missing_file(kubectl, tmp_path):
    folder = copy(tmp_path / "manifests")
    (folder / "base" / "secrets" / "steps.env").unlink()
    with pytest.raises(AssertionError, match=r"secrets/steps\.env"):
        kubectl("kustomize", folder / "overlays" / "local")
