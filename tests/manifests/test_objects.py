"""What every overlay renders: objects that Kubernetes knows, that fit each other and that have no right too many."""

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
# The newest minor version of Kubernetes that the validator knows, and the two before it.
VERSIONS = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))[-3:]
STEP = {"pipelines.kubeflow.org/v2_component": "true"}
GATEWAY = {"app": "istio-ingressgateway"}
# Made by hand: it holds the password of a registry.
FOREIGN = {"air-gapped": {"registry"}}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request):
    return request.param


@pytest.fixture(scope="module")
def objects(render, overlay):
    return render(f"overlays/{overlay}")


def of(objects, *kinds):
    return [one for one in objects if one["kind"] in kinds]


def names(objects, *kinds):
    return {one["metadata"]["name"] for one in of(objects, *kinds)}


def workloads(objects):
    return of(objects, "Deployment", "StatefulSet")


def labels(workload):
    return pods.template(workload)["metadata"]["labels"]


def test_every_overlay_is_tested():
    assert {path.parent.name for path in ROOT.glob("manifests/overlays/*/kustomization.yaml")} == set(OVERLAYS)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field_of_every_object(render, version, monkeypatch):
    read = functools.cache(kubernetes_validate.utils.schema_contents)
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", read)
    rendered = [one for overlay in OVERLAYS for one in render(f"overlays/{overlay}")]
    distinct = {json.dumps(one, sort_keys=True): one for one in rendered}
    for one in distinct.values():
        kubernetes_validate.validate(one, version, strict=True)
    assert len(distinct) > 50


def test_the_readme_says_for_which_versions():
    oldest, _, newest = (kubernetes_validate.utils.major_minor(version) for version in VERSIONS)
    assert f"Kubernetes {oldest} to {newest}." in (ROOT / "manifests/README.md").read_text(encoding="utf-8")


def test_the_validator_objects_to_what_kubernetes_does_not_know(render):
    deployment = json.loads(json.dumps(pods.find(render("overlays/local"), "Deployment", "mlflow")))
    deployment["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readyProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("command", ["create", "apply"])
def test_kubectl_takes_every_object(kubectl, discovery, manifests, overlay, objects, command):
    dry = ["--dry-run=client", "--validate=false", "--output=name"]
    taken = kubectl(command, *dry, *discovery, "--kustomize", manifests / "overlays" / overlay).split()
    assert len(taken) == len(objects)


def test_all_lies_in_the_overlays_namespace(objects, overlay):
    wanted = yaml.safe_load((ROOT / f"manifests/overlays/{overlay}/kustomization.yaml").read_text())["namespace"]
    assert {one["metadata"]["namespace"] for one in objects} == {wanted}
    (binding,) = of(objects, "RoleBinding")
    assert {one["namespace"] for one in binding["subjects"]} == {wanted}


def test_what_pipelines_expect_is_there(objects, overlay):
    expected = Placement()
    (port,) = pods.find(objects, "Service", "mlflow")["spec"]["ports"]
    assert expected.mlflow_uri == f"http://mlflow:{port['port']}"
    assert set(pods.data(objects, "Secret", expected.mlflow_secret)) == set(CREDENTIALS)
    assert (expected.dataset_pvc in names(objects, "PersistentVolumeClaim")) == (overlay != "gke")


def test_steps_on_several_nodes_can_mount_the_data(objects, overlay):
    claims = [
        one["spec"]["accessModes"]
        for one in of(objects, "PersistentVolumeClaim")
        if one["metadata"]["name"] == "evasion-data"
    ]
    assert claims == {"local": [["ReadWriteOnce"]], "gke": []}.get(overlay, [["ReadWriteMany"]])


def test_what_is_referred_to_exists(objects, overlay):
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
    for account in of(objects, "ServiceAccount"):
        assert {one["name"] for one in account.get("imagePullSecrets", ())} <= FOREIGN.get(overlay, set())
    (binding,) = of(objects, "RoleBinding")
    assert binding["roleRef"]["name"] in names(objects, "Role")
    assert {one["name"] for one in binding["subjects"]} <= names(objects, "ServiceAccount")


def test_selectors_choose_pods_that_are_there(objects):
    templates = [labels(one) for one in workloads(objects)]

    def chosen(selector):
        return [one for one in templates if selector.items() <= one.items()]

    for one in workloads(objects):
        assert chosen(one["spec"]["selector"]["matchLabels"]) == [labels(one)]
    for one in of(objects, "Service"):
        assert len(chosen(one["spec"]["selector"])) == 1
    for one in of(objects, "PodDisruptionBudget"):
        assert len(chosen(one["spec"]["selector"]["matchLabels"])) == 1
    for one in of(objects, "NetworkPolicy"):
        selector = one["spec"]["podSelector"]["matchLabels"]
        assert chosen(selector) or selector == STEP


def test_services_lead_to_ports_of_containers(objects):
    for service in of(objects, "Service"):
        (workload,) = [one for one in workloads(objects) if service["spec"]["selector"].items() <= labels(one).items()]
        served = {
            port["name"]: port["containerPort"] for one in pods.containers(workload) for port in one.get("ports", ())
        }
        for port in service["spec"]["ports"]:
            # Policies see the container's port, clients the service's: one number for both.
            assert served[port["targetPort"]] == port["port"]


def test_pods_are_restricted(objects):
    """By the rules of the Pod Security Standard of that name, and closer."""
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


def test_containers_say_what_they_need_and_how_they_are(objects):
    for workload in workloads(objects):
        for container in pods.containers(workload):
            resources = container["resources"]
            assert {"cpu", "memory"} == resources["requests"].keys() == resources["limits"].keys()
            assert container["image"].rpartition("/")[2].startswith(IMAGE)
        for container in pods.template(workload)["spec"]["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_images_come_from_one_registry(objects, overlay):
    found = {one["image"].rpartition("/")[0] for workload in workloads(objects) for one in pods.containers(workload)}
    assert (
        found
        == {
            "local": {""},
            "gke": {"europe-west4-docker.pkg.dev/my-project/evasion"},
            "gpu-operator": {"registry.example"},
            "air-gapped": {"registry.example"},
        }[overlay]
    )


def may_connect(objects, source, target, port, namespace=None):
    """Tell whether policies let a pod connect to another; both are given by their labels.

    Args:
        objects: The overlay's objects.
        source: The labels of the one that connects.
        target: The labels of the other one, which lies in the overlay's namespace.
        port: To which port.
        namespace: The labels of the source's namespace, if it is another one.
    """

    def selects(selector, found):
        return selector is not None and selector.get("matchLabels", {}).items() <= found.items()

    def is_peer(peer, found, its_namespace):
        if "ipBlock" in peer:
            return False
        of_namespace = (
            its_namespace is None
            if "namespaceSelector" not in peer
            else selects(peer["namespaceSelector"], its_namespace or {})
        )
        return of_namespace and selects(peer.get("podSelector", {}), found)

    def allowed(direction, key, owner, other, its_namespace):
        policies = [
            one["spec"]
            for one in of(objects, "NetworkPolicy")
            if direction.capitalize() in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], owner)
        ]
        return not policies or any(
            any(is_peer(peer, other, its_namespace) for peer in rule[key])
            and port in [one["port"] for one in rule.get("ports", [{"port": port}])]
            for policy in policies
            for rule in policy.get(direction, ())
        )

    arrives = allowed("ingress", "from", target, source, namespace)
    return arrives and (namespace is not None or allowed("egress", "to", source, target, None))


def test_who_reaches_whom(objects):
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


def test_no_pod_of_ours_is_without_a_policy_in_either_direction(objects):
    deny = pods.find(objects, "NetworkPolicy", "evasion-deny")["spec"]
    assert deny == {"podSelector": deny["podSelector"], "policyTypes": ["Ingress", "Egress"]}
    for workload in workloads(objects):
        assert deny["podSelector"]["matchLabels"].items() <= labels(workload).items()


def test_nothing_but_gke_lets_mlflow_out(objects, overlay):
    blocks = {
        peer["ipBlock"]["cidr"]
        for policy in of(objects, "NetworkPolicy")
        if policy["spec"]["podSelector"]["matchLabels"] != STEP
        for rule in policy["spec"].get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
    }
    metadata = {"169.254.169.252/32", "169.254.169.254/32"}
    assert blocks - {"169.254.20.10/32"} == ({"0.0.0.0/0", *metadata} if overlay == "gke" else set())


def test_air_gapped_steps_reach_private_networks_alone(render):
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


def asked_by_all_steps(pipeline):
    """What the steps of a compiled pipeline ask for together."""
    spec, *_ = yaml.safe_load_all((ROOT / f"pipelines/compiled/cpu/{pipeline}.yaml").read_text())
    executors, components = spec["deploymentSpec"]["executors"], spec["components"]
    asked = Counter()

    def add(graph):
        for task in graph["dag"]["tasks"].values():
            inner = components[task["componentRef"]["name"]]
            if "dag" in inner:
                add(inner)
            else:
                container = executors[inner["executorLabel"]].get("container", {})
                for name in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit"):
                    asked[name] += quantity(container.get("resources", {}).get(f"resource{name}", 0))

    add(spec["root"])
    return asked


def test_limits_leave_room_for_an_evaluation(objects, overlay):
    if overlay == "local":  # Kubeflow's own pods lie in this namespace
        assert not of(objects, "ResourceQuota", "LimitRange")
        return
    hard = pods.find(objects, "ResourceQuota", "evasion")["spec"]["hard"]
    (limit,) = pods.find(objects, "LimitRange", "evasion")["spec"]["limits"]
    asked = asked_by_all_steps("evaluation_trained")
    for name, of_step in (("cpu", Placement().cpus), ("memory", Placement().memory * 2**30)):
        assert of_step <= quantity(limit["max"][name])
        for kind in ("requests", "limits"):
            containers = [one for workload in workloads(objects) for one in pods.containers(workload)]
            ours = sum(quantity(one["resources"][kind][name]) for one in containers)
            steps = asked[f"{name.capitalize()}{kind.capitalize().rstrip('s')}"]
            assert steps > of_step
            assert steps + ours < quantity(hard[f"{kind}.{name}"])


def test_gpus_are_limited_where_there_are_some(objects, overlay):
    if overlay == "local":
        return
    gpu = Placement().gpu_type
    gpus = int(pods.find(objects, "ResourceQuota", "evasion")["spec"]["hard"][f"requests.{gpu}"])
    assert gpus >= Placement().gpus if overlay in ("gke", "gpu-operator") else gpus == 0
    # A limit without defaults would be given to every container.
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
    # Kubeflow's groups alone: nothing of Kubernetes'.
    assert {group for group, _, _ in granted} == {"pipelines.kubeflow.org", "kubeflow.org"}
    assert {("pipelines.kubeflow.org", "runs", verb) for verb in ("create", "get", "list", "terminate")} <= granted
    assert not [one for one in granted if one[2] in ("delete", "update", "*") or "*" in one]
    (binding,) = of(objects, "RoleBinding")
    assert [one["name"] for one in binding["subjects"]] == ["evasion-submit"]


def test_git_holds_no_value_of_a_secret(tmp_path):
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True).stdout.split()

    secrets = [f"manifests/base/secrets/{name}.env" for name in ("server", "steps")]
    assert git("check-ignore", *secrets) == secrets
    assert not [path for path in git("ls-files", "manifests") if "secrets" in path]
    for path in [*ROOT.glob("manifests/base/**/*.yaml"), *ROOT.glob("manifests/overlays/**/*.yaml")]:
        assert "Secret" not in [one and one["kind"] for one in yaml.safe_load_all(path.read_text())], path


def test_without_secrets_kubectl_says_which_file_is_missing(kubectl, tmp_path):
    folder = copy(tmp_path / "manifests")
    (folder / "base" / "secrets" / "steps.env").unlink()
    with pytest.raises(AssertionError, match=r"secrets/steps\.env"):
        kubectl("kustomize", folder / "overlays" / "local")
