"""Runs every command of manifests/README.md as far as possible without a cluster."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile

import pods
import pytest
import yaml
from click.testing import CliRunner
from pods import KUBECTL, ROOT

from evasion.components.step import IMAGE
from evasion.pipelines.cli import main
from evasion.pipelines.local import containers
from evasion.pipelines.submit import watch

TEXT = (ROOT / "manifests/README.md").read_text(encoding="utf-8")
BLOCKS = [
    [shlex.split(line.removeprefix("$ ")) for line in block.replace("\\\n", "").splitlines()]
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
]
COMMANDS = [command for block in BLOCKS for command in block]


def commands_of(program, *words):
    return [command for command in COMMANDS if command[: 1 + len(words)] == [program, *words]]


def option(command, name):
    return command[command.index(name) + 1]


def test_every_command_is_of_a_kind_that_is_tested_here():
    programs = {command[0] for command in COMMANDS}
    assert programs == {"make", "kind", "kubectl", "gcloud", ".venv/bin/evasion"}
    assert {command[1] for command in commands_of("make")} == {"image", "deploy", "load-data"}
    assert {command[1] for command in commands_of(".venv/bin/evasion")} == {"submit"}


def test_five_commands_from_clone_to_a_green_run():
    assert [command[0] for command in BLOCKS[0]] == ["make", "kind", "make", "make", ".venv/bin/evasion"]


# Replaces kubectl in `make`, without a cluster: `apply` is a dry run, and commands in pods run on this machine.
SHIM = """
import json, os, subprocess, sys
arguments = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps(arguments), file=calls)
if arguments[0] == "apply":
    options = ["--dry-run=client", "--validate=false", *json.loads(os.environ["DISCOVERY"])]
    sys.exit(subprocess.call([os.environ["REAL"], *arguments, *options]))
if arguments[0] == "exec":
    places = {"python3": sys.executable, "/etc/evasion": "manifests/base/data", "/data": os.environ["CLAIM"]}
    command = arguments[arguments.index("--") + 1 :]
    for name, place in places.items():
        command = [place + word.removeprefix(name) if word.startswith(name) else word for word in command]
    sys.exit(subprocess.call(command))
"""


@pytest.fixture
def clone(tmp_path, discovery, monkeypatch):
    """Runs make in a separate clone; returns its output and its calls of kubectl."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in (".venv", "Makefile", "pyproject.toml", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "manifests", folder / "manifests", ignore=shutil.ignore_patterns("secrets"))
    (tmp_path / "kubectl.py").write_text(SHIM)
    (tmp_path / "claim").mkdir()
    calls = tmp_path / "calls"
    variables = {"CALLS": calls, "REAL": KUBECTL, "CLAIM": tmp_path / "claim", "DISCOVERY": json.dumps(discovery)}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))

    def make(*arguments):
        calls.write_text("")
        # --assume-old: nothing is installed again.
        settings = ["--assume-old=.venv/.installed", f"KUBECTL={sys.executable} {tmp_path / 'kubectl.py'}"]
        done = subprocess.run(["make", *settings, *arguments], cwd=folder, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, [json.loads(line) for line in calls.read_text().splitlines()]

    make.folder = folder
    make.claim = tmp_path / "claim"
    return make


def test_make_image_builds_the_images_that_kind_loads_and_the_overlay_runs(clone, render):
    printed, _ = clone("--dry-run", *commands_of("make", "image")[0][1:])
    assert f"image={IMAGE}" in printed
    targets = re.search(r"for target in ([a-z ]+);", printed).group(1).split()
    (loaded,) = commands_of("kind")
    assert loaded[3:] == [containers.image(target) for target in targets]
    workloads = [item for item in render("overlays/local") if item["kind"] in ("Deployment", "StatefulSet")]
    used = {container["image"] for workload in workloads for container in pods.containers(workload)}
    assert used == set(loaded[3:])


@pytest.mark.parametrize("command", commands_of("make", "deploy"), ids=" ".join)
def test_make_deploy_creates_secrets_once_and_applies_the_overlay(clone, command):
    overlay = dict(word.split("=") for word in command[2:]).get("OVERLAY", "local")
    printed, calls = clone(*command[1:])
    assert "deployment.apps/mlflow created (dry run)" in printed
    applied, waited = calls
    assert applied == ["apply", "-k", f"manifests/overlays/{overlay}"]
    namespace = option(waited, "--namespace")
    assert waited == ["rollout", "status", "--namespace", namespace, "--timeout", "10m", "deployment/mlflow"]
    assert f"namespace: {namespace}\n" in (ROOT / applied[-1] / "kustomization.yaml").read_text()

    secrets = {path: path.read_text() for path in clone.folder.glob("manifests/base/secrets/*")}
    values = re.findall("=(.*)", "".join(secrets.values()))
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert len(values) == len(set(values)) == 5
    assert not [value for value in values if len(value) == 48 and value in printed]
    clone(*command[1:])
    assert secrets == {path: path.read_text() for path in secrets}


def test_make_load_data_copies_digits_into_the_claim(clone, mnist):
    shutil.copytree(mnist, clone.folder / "data" / "mnist")
    (command,) = commands_of("make", "load-data")
    _, calls = clone(*command[1:])
    folders = (mnist, clone.claim / "mnist")
    sent, arrived = ({path.relative_to(top): path.read_bytes() for path in top.rglob("*.png")} for top in folders)
    helper = ["--namespace", "kubeflow", "deployment/evasion-data"]
    assert [[word for word in call if word not in helper] for call in calls] == [
        ["scale", "--replicas", "1"],
        ["rollout", "status", "--timeout", "10m"],
        ["exec", "--stdin", "--", "python3", "/etc/evasion/receive.py", "/data", str(len(sent))],
        ["scale", "--replicas", "0"],
    ]
    assert all(word in call for call in calls for word in helper)
    assert sent == arrived


def test_a_transfer_that_ends_between_files_changes_nothing(tmp_path):
    """A tar that ends there looks complete."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(4):
            member = tarfile.TarInfo(f"mnist/{number}.png")
            member.size = 5
            tar.addfile(member, io.BytesIO(b"image"))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "old.png").write_bytes(b"old")
    receive = [sys.executable, ROOT / "manifests/base/data/receive.py", tmp_path, "4"]
    for length in (1024, 2048, 2500):
        cut = subprocess.run(receive, input=buffer.getvalue()[:length], capture_output=True)
        assert cut.returncode == 1
        assert b"The transfer broke off" in cut.stderr
        assert [path.name for path in (tmp_path / "mnist").iterdir()] == ["old.png"]
    subprocess.run(receive, input=buffer.getvalue(), check=True, capture_output=True)
    assert len([*(tmp_path / "mnist").iterdir()]) == 4


def test_without_python_no_password_is_generated(clone):
    with pytest.raises(AssertionError, match="nosuch"):
        clone("secrets", "PYTHON=nosuch")
    assert not [*clone.folder.glob("manifests/base/secrets/*.env")]


def test_make_load_data_copies_another_folder(clone, tmp_path):
    folder = tmp_path / "signs"
    (folder / "stop").mkdir(parents=True)
    (folder / "stop" / "a.png").write_bytes(b"image")
    (folder / "stop" / "b.png").symlink_to("a.png")
    _, calls = clone("load-data", f"DATA={folder}", "OVERLAY=air-gapped")
    assert {option(call, "--namespace") for call in calls} == {"evasion"}
    assert (clone.claim / "signs" / "stop" / "b.png").read_bytes() == b"image"


@pytest.mark.parametrize("command", commands_of("kubectl"), ids=lambda command: " ".join(command[1:3]))
def test_kubectl_accepts_the_command_for_existing_objects(command, render, discovery):
    arguments = command[1 : command.index(">")] if ">" in command else command[1:]
    done = subprocess.run([KUBECTL, *discovery, *arguments], text=True, capture_output=True)
    # kubectl has parsed the command, and requests or sends an object from or to a server that has none.
    assert "no object is here" in done.stderr, done.stderr
    namespace = option(command, "--namespace")
    objects = render("overlays/local" if namespace == "kubeflow" else "overlays/gke")
    assert objects[0]["metadata"]["namespace"] == namespace
    existing = {(item["kind"].lower(), item["metadata"]["name"]) for item in objects}
    named = [
        tuple(word.split("/")) for word in command if re.fullmatch("(service|statefulset|deployment)/[a-z-]+", word)
    ]
    if command[1:3] == ["create", "token"]:
        named = [("serviceaccount", command[3])]
    assert set(named) <= existing
    foreign = {"default-editor", "docker-registry", "workflow-controller-configmap"}
    assert named or foreign & set(command)


# From the ConfigMap of Kubeflow 2.17.
DEFAULTS = """
spec:
  ttlStrategy:
    secondsAfterCompletion: 3600
    secondsAfterSuccess: 3600
    secondsAfterFailure: 3600
  templateDefaults:
    retryStrategy:
      limit: '2'
      retryPolicy: OnError
"""


def test_the_patch_for_drained_nodes_changes_only_the_retry_strategy(tmp_path):
    name = {"name": "workflow-controller-configmap", "namespace": "kubeflow"}
    data = {"artifactRepository": "archiveLogs: true\n", "workflowDefaults": DEFAULTS}
    (tmp_path / "map.yaml").write_text(
        yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": data})
    )
    (command,) = commands_of("kubectl", "patch", "configmap")
    words = ["patch", "--local", "--filename", tmp_path / "map.yaml", "--output", "yaml"]
    words += ["--patch-file", ROOT / option(command, "--patch-file")]
    done = subprocess.run([KUBECTL, *words], text=True, capture_output=True)
    patched = yaml.safe_load(done.stdout)["data"]
    assert patched["artifactRepository"] == data["artifactRepository"]
    after, before = yaml.safe_load(patched["workflowDefaults"]), yaml.safe_load(DEFAULTS)
    retry = after["spec"]["templateDefaults"].pop("retryStrategy")
    before["spec"]["templateDefaults"].pop("retryStrategy")
    assert after == before
    # Checked with Argo's own controller and a workflow compiled by Kubeflow.
    assert retry == {
        "limit": "2",
        "retryPolicy": "Always",
        "expression": 'lastRetry.status == "Error" || '
        '(lastRetry.exitCode == "143" && !(lastRetry.message contains "deadline"))',
    }


def test_the_gcloud_commands_match_the_overlay(render):
    objects = render("overlays/gke")
    account = pods.find(objects, "ServiceAccount", "mlflow")
    email = account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]
    create, bind, grant, nodes = commands_of("gcloud")
    assert create[-1] == email.partition("@")[0]
    assert email in bind
    project = re.fullmatch(r".*@(.*)\.iam\.gserviceaccount\.com", email).group(1)
    assert (
        option(bind, "--member") == f"serviceAccount:{project}.svc.id.goog[{account['metadata']['namespace']}/mlflow]"
    )
    assert option(grant, "--member") == f"serviceAccount:{email}"
    bucket = next(word for word in grant if word.startswith("gs://"))
    mlflow = pods.containers(pods.find(objects, "Deployment", "mlflow"))[-1]
    assert pods.environment(objects, mlflow)["MLFLOW_ARTIFACTS_DESTINATION"].startswith(bucket)
    on_gpus = next(command for command in commands_of(".venv/bin/evasion") if "--node-selector" in command)
    accelerator = re.search("type=([a-z0-9-]+)", option(nodes, "--accelerator")).group(1)
    assert option(on_gpus, "--node-selector") == f"cloud.google.com/gke-accelerator={accelerator}"
    assert option(on_gpus, "--image").rpartition(":")[0] == mlflow["image"].rpartition(":")[0]


@pytest.mark.parametrize(
    "command", commands_of(".venv/bin/evasion"), ids=lambda words: "gpu" if "gpu" in words else "cpu"
)
def test_submit_runs_the_pipeline_in_the_images_of_the_overlay(command, kfp_server, render, monkeypatch):
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    arguments = [word for word in command[1:] if word != "--port-forward"]  # the server here is not behind kubectl
    result = CliRunner().invoke(main.main, [*arguments, "--host", kfp_server.address])
    assert result.exit_code == 0, result.output
    (run,) = kfp_server.runs.values()
    assert run.model.runtime_config.parameters["data_dir_test"] == option(command, "--data-dir-test")
    (version,) = kfp_server.versions.values()
    executors = version.pipeline_spec["deploymentSpec"]["executors"].values()
    images = {executor["container"]["image"] for executor in executors if "container" in executor}
    overlay = "gke" if "gpu" in command else "local"
    mlflow = pods.find(render(f"overlays/{overlay}"), "Deployment", "mlflow")
    step_image = pods.containers(mlflow)[0]["image"].removesuffix("-mlflow")
    assert images == ({step_image, f"{step_image}-gpu"} if overlay == "gke" else {step_image})
