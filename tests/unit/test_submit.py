"""`evasion submit`, against a server that implements Kubeflow Pipelines' API and can inject faults."""

import base64
import datetime
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kfp import dsl
from kfp.compiler import Compiler
from kfp_server import RESET, Story, serving
from summaries import summary

from evasion.components.common import tracking
from evasion.components.common.tracking import stage_run
from evasion.components.step import step
from evasion.pipelines import catalog
from evasion.pipelines.cli import commands, main
from evasion.pipelines.cli.submit import command as submit_command
from evasion.pipelines.cli.submit import job
from evasion.pipelines.placement import Placement, place
from evasion.pipelines.submit import auth, cron, host, logs, watch, workflow

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled" / "cpu"
FGM = ["--data-dir", "/data/test", "--model", "m", "--model-architecture", "le_net"]
EVALUATION = ["evaluation", "--model", "m", "--model-architecture", "le_net", "--data-dir-test", "x"]


@step
def measure(rounds: int) -> int:
    return rounds


@step
def judge(measured: int, strict: bool = True):
    pass


@dsl.pipeline(name="measuring")
def measuring(rounds: int, strict: bool = True):
    """Measure and judge.

    Args:
        rounds: How often.
        strict: Whether to be.
    """
    judge(measured=measure(rounds=rounds).output, strict=strict)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small compiled pipeline, as what is submitted."""
    path = tmp_path_factory.mktemp("compiled") / "measuring.yaml"
    Compiler().compile(place(measuring, Placement()), str(path))
    return [str(path), "--rounds", "3"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shorten the pauses; remove the host and the credentials from the environment."""
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    monkeypatch.setattr(host, "BACKOFF", 0.01)
    for name in ("KFP_HOST", "KFP_TOKEN", "KFP_COOKIE", "KFP_NAMESPACE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(auth.TOKEN_FILE_VARIABLE, "/no/token")


@pytest.fixture
def submit(kfp_server, file):
    """Submit, the small file unless a pipeline is named."""

    def run(*arguments, code=0):
        arguments = [*([] if arguments and not arguments[0].startswith("--") else file), *arguments]
        where = [] if "--host" in arguments or "--port-forward" in arguments else ["--host", kfp_server.address]
        result = CliRunner().invoke(main.main, ["submit", *arguments, *where])
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return run


def only(objects):
    (value,) = objects.values()
    return value


def test_a_pipeline_is_uploaded_once_run_and_followed(submit, kfp_server):
    kfp_server.story = Story(per_look=1)
    result = submit(
        "fgm", *FGM, "--eps", "0.1", "--run-name", "nightly", "--experiment", "signs", "--git-commit", "c0ffee"
    )
    run = only(kfp_server.runs).model
    assert result.stdout == f"Run: {kfp_server.address}/#/runs/details/{run.run_id}\n"
    assert run.display_name == "nightly"
    assert run.description.startswith("evasion submit fgm, commit c0ffee (submission ")
    arguments = run.runtime_config.parameters
    assert arguments["data_dir"] == "/data/test"  # a path in the cluster, which does not exist here
    assert arguments["eps"] == 0.1
    assert only(kfp_server.experiments).display_name == "signs"
    pipeline, version = only(kfp_server.pipelines), only(kfp_server.versions)
    assert pipeline.name == "evasion-fgm"
    assert re.fullmatch(r"evasion-fgm-[0-9a-f]{12}", version.name)
    assert f"uploaded {version.name}" in result.stderr
    assert '"MLFLOW_EXPERIMENT_NAME"' in json.dumps(version.pipeline_spec)
    for line in ("load_dataset: started", "load_dataset: done in 5.0 s", "infer: done in"):
        assert line in result.stderr
    assert result.stderr.index("load_dataset: done") < result.stderr.index("fgm: done")
    assert result.stderr.endswith("The run succeeded.\n")

    again = submit("fgm", *FGM, "--experiment", "signs", "--no-wait")
    assert f"already there: {version.name}" in again.stderr
    assert len(kfp_server.versions) == len(kfp_server.experiments) == 1
    assert len(kfp_server.runs) == 2
    submit("fgm", *FGM, "--experiment", "signs", "--no-wait", "--memory", "8", "--step-timeout", "5")
    assert len(kfp_server.pipelines) == 1
    assert len(kfp_server.versions) == 2


def test_a_compiled_file_is_submitted_unchanged(submit, kfp_server, file):
    submit("--no-wait")
    assert only(kfp_server.packages) == Path(file[0]).read_bytes()
    arguments = only(kfp_server.runs).model.runtime_config.parameters
    assert {name: arguments[name] for name in ("rounds", "strict")} == {"rounds": 3, "strict": True}
    assert arguments["kubeflow_link"] == kfp_server.address
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?|", arguments["git_commit"])
    shown = " ".join(submit(file[0], "--help").stdout.split())
    assert "--rounds INTEGER How often. [required]" in shown
    assert "--memory" not in shown  # compiled into the file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fgm", *FGM, "--eps", "2"], "Set --eps."),
        (["fgm", "--data-dir", "x", "--model", "m"], "Missing option '--model-architecture'"),
        ([str(COMPILED / "fgm.yaml"), *FGM, "--eps", "2"], "Set --eps."),
        (["fgm", *FGM, "--memory", "0"], "Set --memory."),
        (["fgm", *FGM, "--step-timeout", "-1"], "Set --step-timeout."),
        (["--cron", "every day"], "Set --cron."),
        (["--timeout", "soon"], "Invalid duration: 'soon'. Use e.g. 90m, 2h30m or 45s."),
        (["--output", "x"], "requires a pipeline with a report"),
        ([*EVALUATION, "--output", "x"], "Set --tracking-uri."),
        ([*EVALUATION, "--output", "x", "--no-wait"], "Omit --no-wait."),
        ([*EVALUATION, "--output", "x", "--cron", "@daily"], "Omit --cron."),
        ([*EVALUATION, "--attacks", "fgn"], "fgn"),
        ([*EVALUATION, "--data-dir-test", " "], "data_dir must be given"),
        (["fgn"], "No such pipeline: fgn."),
        (["missing.yaml"], "missing.yaml"),
        ([__file__.replace(".py", ".yaml")], "test_submit.yaml"),
        (["--port-forward", "--host", "http://x"], "exclude each other"),
        (["--host", "kubeflow.example"], "http:// or https://"),
    ],
)
def test_invalid_options_are_reported_before_anything_is_sent(submit, kfp_server, arguments, message):
    assert message in " ".join(submit(*arguments, code=2).stderr.split())
    assert kfp_server.asked == []


def test_a_file_that_is_not_a_pipeline_is_refused(submit, tmp_path):
    for content in ("", "a: b", "{", "components: {}\nroot: {dag: {tasks: {}}}\npipelineInfo: {name: x}"):
        (tmp_path / "x.yaml").write_text(content)
        assert "must be the YAML of a compiled pipeline" in submit(str(tmp_path / "x.yaml"), code=2).stderr


def test_a_missing_host_is_reported(file):
    result = CliRunner().invoke(main.main, ["submit", *file])
    assert result.exit_code == 2
    assert "Set --host or --port-forward." in result.stderr


@pytest.mark.parametrize("name", list(catalog.pipelines()))
def test_names_of_options_are_unique(name):
    command = submit_command._command(commands.command(name))
    names = [option.name for option in command.params]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("ends", "code"), [("FAILED", 1), ("CANCELED", 3), ("SKIPPED", 3)])
def test_the_exit_code_is_the_state_of_the_run(submit, kfp_server, ends, code):
    kfp_server.story = Story(ends=ends)
    result = submit(code=code)
    assert f"Run: {kfp_server.address}/#/runs/details/" in result.stderr.splitlines()[-1]


def test_shards_receive_their_imported_datasets(submit, kfp_server):
    assert submit(*EVALUATION, "--shards", "2").stderr.endswith("The run succeeded.\n")


TRACEBACK = "Traceback (most recent call last):\n  …\nValueError: eps must be in (0, 1]. Received: eps=-0.3"


@pytest.mark.parametrize("shows_workflows", [True, False])
@pytest.mark.parametrize("tries_all_again", [True, False])
def test_a_failed_steps_log_is_shown(submit, kfp_server, shows_workflows, tries_all_again):
    """Of the pod that ran, however the cluster's Argo names its nodes, and whether or not Kubeflow shows them."""
    kfp_server.shows_workflows, kfp_server.tries_all_again = shows_workflows, tries_all_again
    printed = "\n".join(f"line {number}" for number in range(300)) + f"\n{TRACEBACK}\nI0 launcher ends"
    kfp_server.story = Story(ends="FAILED", fails="measure", error="exit code 1", log={"measure": printed})
    result = submit(code=1)
    assert f"measure: failed in 5.0 s{': exit code 1' if shows_workflows else ''}\n" in result.stderr
    # The step's error message comes first, and again at the end.
    message = "measure: eps must be in (0, 1]. Received: eps=-0.3\n"
    head, shown = result.stderr.split(
        "The last lines of measure (pod evasion-measuring-x7k2p-retry-system-container-impl-"
    )
    assert head.endswith(message)
    assert f"Error: The run failed: {message}" in shown
    assert "    line 299\n    Traceback" in shown
    assert "line 110\n" in shown
    assert "line 99\n" not in shown
    assert "The last lines of judge" not in result.stderr


def test_an_error_in_place_of_a_log_is_not_a_log(submit, kfp_server):
    kfp_server.story = Story(ends="FAILED", fails="measure", error="exit code 1")
    result = submit(code=1)
    assert "Could not fetch the log of measure" in result.stderr
    assert "Could not get main container logs" in result.stderr
    assert "error_details" not in result.stderr
    assert "The last lines of measure" not in result.stderr
    assert "Error: The run failed: measure: exit code 1\n" in result.stderr


def test_steps_are_shown_to_their_end_where_argo_compresses_their_nodes(submit, kfp_server):
    kfp_server.story = Story(per_look=1, compressed=True)
    assert "judge: done in 5.0 s" in submit().stderr


def test_without_a_failed_step_the_failed_node_is_named(submit, kfp_server):
    message = "The specified bucket does not exist"
    kfp_server.story = Story(ends="FAILED", fails="root-driver", error=message)
    assert f"Error: The run failed: the driver of root: {message}\n" in submit(code=1).stderr


def test_of_shards_the_one_that_failed_counts_and_its_log_is_shown(submit, kfp_server):
    kfp_server.story = Story(ends="FAILED", fails="fgm", fails_in=1, error="exit code 1", log={"fgm": "No eps."})
    result = submit(*EVALUATION, "--shards", "3", code=1)
    assert "fgm: failed in 5.0 s: exit code 1" in result.stderr
    assert "The last lines of fgm (pod evasion-evaluation-registered-x7k2p-" in result.stderr
    assert "    No eps.\n" in result.stderr
    assert "All is well." not in result.stderr


def test_the_least_advanced_round_of_a_loop_counts():
    def state(*states):
        nodes = [workflow.Node("fgm", state) for state in states]
        (progress,) = watch.progress(nodes, [SimpleNamespace(task="fgm")])
        return progress.state

    assert state("SUCCEEDED", "FAILED", "SUCCEEDED") == "FAILED"
    assert state("RUNNING", "SUCCEEDED") == state("SUCCEEDED", "RUNNING") == "RUNNING"
    assert state("SUCCEEDED", "SUCCEEDED") == "SUCCEEDED"


def test_port_forward_takes_precedence_over_the_variable(monkeypatch):
    monkeypatch.setenv("KFP_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", "/nowhere")
    result = CliRunner().invoke(main.main, ["submit", "fgm", *FGM, "--port-forward"])
    assert result.exit_code == 5
    assert "kubectl" in result.stderr


def test_without_a_log_its_location_is_shown(submit, kfp_server):
    kfp_server.story = Story(ends="FAILED", fails="measure-driver", error="cannot pull the image")
    result = submit("--namespace", "signs", code=1)
    assert "measure: failed in 5.0 s" in result.stderr
    (run_id,) = kfp_server.runs
    assert f"kubectl logs --namespace signs --selector pipeline/runid={run_id}" in result.stderr


def test_the_hash_of_a_node_is_fnv_1a():
    # From the authors' own test vectors.
    assert logs._hash("") == 0x811C9DC5
    assert logs._hash("foobar") == 0xBF9CF968


@pytest.mark.parametrize("fault", [500, 503, RESET])
def test_requests_that_read_are_retried(submit, kfp_server, fault):
    for path in ("healthz", "experiments", "pipelines$", "versions", "runs/"):
        kfp_server.fail(fault, path=path, times=3)
    submit()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fault", [500, RESET])
def test_nothing_is_created_twice(submit, kfp_server, fault, after):
    """Whether the host fails before or after it has created the object."""
    for path in ("experiments", "pipelines$", "upload_version", "runs"):
        kfp_server.fail(fault, method="POST", path=path, times=2, after=after)
    submit("--run-name", "x", "--no-wait")
    for objects in (kfp_server.experiments, kfp_server.pipelines, kfp_server.versions, kfp_server.runs):
        assert len(objects) == 1


def test_a_run_of_the_same_name_is_not_taken_for_this_one(submit, kfp_server):
    submit("--run-name", "x", "--no-wait")
    kfp_server.fail(500, method="POST", path="runs")
    submit("--run-name", "x", "--no-wait")
    assert len(kfp_server.runs) == 2


def test_a_slow_request_is_retried(submit, kfp_server, monkeypatch):
    monkeypatch.setattr(host, "READ", 0.2)
    kfp_server.fail(0.6, path="runs/", times=2)
    submit()


def test_a_host_that_is_away_for_a_while_is_waited_for(submit, kfp_server):
    kfp_server.story = Story(per_look=1)
    kfp_server.fail(503, path="runs/", times=20)  # more than the retries of one request
    result = submit()
    assert result.stderr.count("trying again: ") == 1


def test_a_host_that_stays_away_ends_the_wait(submit, kfp_server, monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE", 0.1)
    kfp_server.fail(503, path="runs/", times=10**6)
    assert "503" in submit(code=5).stderr


def test_an_unreachable_host_is_reported(submit):
    result = submit("--host", "http://127.0.0.1:9", code=5)
    assert "http://127.0.0.1:9 does not respond" in result.stderr


def test_a_refused_request_is_reported(submit, kfp_server):
    kfp_server.fail(400, method="POST", path="runs")
    assert "400 fault" in submit(code=1).stderr


def test_a_time_limit_ends_the_wait_and_not_the_run(submit, kfp_server):
    kfp_server.story = Story(ends=None)
    result = submit("--timeout", "1s", code=4)
    assert "it continues" in result.stderr
    assert only(kfp_server.runs).model.state == "RUNNING"


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("2h30m", 9000), ("45", 45), ("1h 1s", 3601)])
def test_durations_are_read(text, seconds):
    assert submit_command.Duration().convert(text, None, None) == seconds


# -- credentials


def test_a_token_is_sent(submit, kfp_server, monkeypatch):
    kfp_server.tokens = {"secret"}
    submit("--token", "secret", "--no-wait")
    monkeypatch.setenv("KFP_TOKEN", "secret")
    submit("--no-wait")
    monkeypatch.setenv("KFP_TOKEN", "expired")
    result = submit(code=5)
    denied = f"Permission denied by {kfp_server.address} (HTTP 401): the token has expired."
    assert f"{denied} Set --token, --token-command or --cookie." in result.stderr
    assert "secret" not in result.output


def test_an_expired_token_is_renewed_by_the_command(submit, kfp_server, tmp_path):
    file = tmp_path / "token"
    file.write_text("first")
    counted = tmp_path / "counted"
    script = tmp_path / "print token"
    script.write_text(f'#!/bin/sh\necho run >> "{counted}"\ncat "{file}"\n')
    script.chmod(0o755)
    kfp_server.tokens = {"first"}
    kfp_server.story = Story(per_look=1)
    answer = kfp_server.answer

    def expire(method, path, *rest):
        if method == "GET" and "/runs/" in path:
            kfp_server.tokens = {"second"}  # from the next request on
            file.write_text("second")
        return answer(method, path, *rest)

    kfp_server.answer = expire
    submit("--token-command", f"'{script}'")
    assert counted.read_text() == "run\n" * 2


def test_in_a_pod_the_service_accounts_token_is_read_again(kfp_server, file, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("first\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(auth.TOKEN_FILE_VARIABLE, str(token))
    monkeypatch.setattr(job, "IN_CLUSTER", kfp_server.address)
    namespace = tmp_path / "namespace"
    namespace.write_text("signs")
    monkeypatch.setattr(auth, "NAMESPACE_FILE", str(namespace))
    kfp_server.multi_user = True
    kfp_server.tokens = {"second"}
    answered = kfp_server.fault_for

    def renew(*arguments):
        token.write_text("second\n")  # as the kubelet does
        return answered(*arguments)

    kfp_server.fault_for = renew
    result = CliRunner().invoke(main.main, ["submit", *file])
    assert result.exit_code == 0, result.output
    assert only(kfp_server.pipelines).namespace == only(kfp_server.experiments).namespace == "signs"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sh -c 'echo no >&2; exit 3'", "exited with status 3: no"),
        ("no-such-command", "Could not run the token command"),
        ("true", "printed nothing"),
    ],
)
def test_a_failing_token_command_is_reported(submit, line, message):
    assert message in submit("--token-command", line, code=5).stderr


def test_a_cookie_is_sent(submit, kfp_server):
    kfp_server.cookies = {"authservice_session=1"}
    submit("--cookie", "authservice_session=1", "--no-wait")
    assert "(HTTP 403): forbidden" in submit("--no-wait", code=5).stderr


def test_a_login_page_is_reported(submit, kfp_server):
    kfp_server.log_in_page = True
    assert "returned a web page, which may be a login page" in submit(code=5).stderr


def test_a_host_of_several_users_requires_the_namespace(submit, kfp_server):
    kfp_server.multi_user = True
    assert "Set --namespace." in submit(code=2).stderr
    submit("--namespace", "signs")
    assert kfp_server.count("GET", "pipelines$") == 1


def test_a_proxy_is_used_unless_the_host_is_excluded(submit, kfp_server, monkeypatch):
    monkeypatch.setenv("http_proxy", kfp_server.address)  # it answers for any host
    monkeypatch.delenv("no_proxy", raising=False)
    submit("--host", "http://kubeflow.invalid", "--no-wait")
    assert len(kfp_server.runs) == 1
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    submit("--no-wait")


@pytest.fixture
def certificate(tmp_path):
    """A file with a key and a self-signed certificate of localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path / "localhost.pem"
    file.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return str(file)


def test_a_host_must_have_a_trusted_certificate(submit, certificate, monkeypatch):
    for name in host.CERTIFICATES:
        monkeypatch.delenv(name, raising=False)
    with serving(certificate=certificate) as server:
        assert "CERTIFICATE_VERIFY_FAILED" in submit("--host", server.address, code=5).stderr
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        submit("--host", server.address)
        assert len(server.runs) == 1


KUBECTL = """#!{python}
import json, pathlib, socket, sys, threading
here = pathlib.Path(__file__).parent
if sys.argv[1] == "get":
    kind = sys.argv[2]
    open(here / "got", "a").write(" ".join(sys.argv[2:]) + "\\n")
    if not (here / (kind + ".json")).exists():
        sys.exit("error: " + kind + " is forbidden")
    print((here / (kind + ".json")).read_text())
    sys.exit()
assert sys.argv[1] == "port-forward"
open("{asked}", "a").write(" ".join(sys.argv[2:]) + "\\n")
local, remote = sys.argv[7].split(":")
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(local or 0)))
server.listen()
print(f"Forwarding from 127.0.0.1:{{server.getsockname()[1]}} -> 3000", flush=True)
print(f"Forwarding from [::1]:{{server.getsockname()[1]}} -> 3000", flush=True)
def carry(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for end in (one, other):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
for _ in range({connections}):
    here, _ = server.accept()
    there = socket.create_connection(("127.0.0.1", {mlflow} if sys.argv[6] == "service/mlflow" else {port}))
    for pair in ((here, there), (there, here)):
        threading.Thread(target=carry, args=pair).start()
server.close()
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch, kfp_server):
    """A kubectl that forwards a port to the server, as the real one does."""

    def make(text=KUBECTL, connections=1000, mlflow=kfp_server.address):
        file = tmp_path / "kubectl"
        port, mlflow = (address.rpartition(":")[2] for address in (kfp_server.address, mlflow))
        asked = tmp_path / "asked"
        file.write_text(
            text.format(python=sys.executable, port=port, mlflow=mlflow, connections=connections, asked=asked)
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


def test_the_host_is_reached_through_kubectl(submit, kfp_server, kubectl, tmp_path):
    kubectl()
    result = submit("--port-forward")
    assert len(kfp_server.runs) == 1
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked == "--namespace kubeflow --address 127.0.0.1 service/ml-pipeline-ui :80"
    # The printed address of the run does not depend on the connection through kubectl.
    assert f"Run: http://127.0.0.1:8080/#/runs/details/{only(kfp_server.runs).model.run_id}" in result.stdout
    assert "kubectl port-forward --namespace kubeflow service/ml-pipeline-ui 8080:80" in result.stderr


def test_a_broken_connection_is_reopened(submit, kfp_server, kubectl, monkeypatch):
    monkeypatch.setattr("evasion.pipelines.submit.forward.PAUSE", 0.05)
    monkeypatch.setattr(host, "BACKOFF", 0.1)
    kfp_server.story = Story(per_look=1)
    kubectl(connections=1)
    kfp_server.fail(RESET, path="runs/", times=2)  # so that more than one connection is needed
    submit("--port-forward")


def slices(*ready):
    """kubectl's output for the endpoints of a Service, each ready, not ready, or without that condition."""
    endpoints = [
        {"addresses": ["10.0.0.1"], "conditions": {} if state is None else {"ready": state}} for state in ready
    ]
    return {"items": [{"endpoints": endpoints or None}]}


@pytest.mark.parametrize("endpoint_slices", [slices(), slices(False, False)])
def test_a_service_without_a_ready_pod_is_reported_without_connecting(submit, kubectl, tmp_path, endpoint_slices):
    kubectl()
    (tmp_path / "endpointslices.json").write_text(json.dumps(endpoint_slices))
    result = submit("--port-forward", code=5)
    assert (
        "Error: Service kubeflow/ml-pipeline-ui has no ready pod. See: kubectl --namespace kubeflow get pods\n"
        in result.stderr
    )
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("endpoint_slices", [slices(False, True), slices(None), {"items": []}])
def test_a_service_that_may_have_a_ready_pod_is_reached(submit, kfp_server, kubectl, tmp_path, endpoint_slices):
    kubectl()
    (tmp_path / "endpointslices.json").write_text(json.dumps(endpoint_slices))
    submit("--port-forward")
    assert len(kfp_server.runs) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\necho 'error: services not found' >&2\nexit 1\n", "error: services not found"),
        (None, "--port-forward needs kubectl"),
    ],
)
def test_a_failed_connection_is_reported(submit, kubectl, monkeypatch, text, message):
    if text:
        kubectl(text)
    else:
        monkeypatch.setenv("PATH", "/nowhere")
    assert message in submit("--port-forward", code=5).stderr


# -- the report


@step
def report():
    pass


@dsl.pipeline(name="reporting")
def reporting():
    report()


@pytest.fixture(scope="module")
def reporting_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "reporting.yaml"
    Compiler().compile(place(reporting, Placement()), str(path))
    return str(path)


def test_the_report_is_fetched_from_mlflow(submit, kfp_server, reporting_file, mlflow_store, tmp_path, monkeypatch):
    content = summary("fgm fools it.")
    uri = os.environ["MLFLOW_TRACKING_URI"]

    def log(run):
        """As the steps of the run do."""
        monkeypatch.setenv("KFP_RUN_ID", run.run_id)
        (tmp_path / "report.html").write_text("<p>page</p>")
        (tmp_path / "report.json").write_text(json.dumps(content))
        tracking.mark_pipeline_run("reporting", "RUNNING")
        with tracking.stage("report", {}) as stage:
            for name in ("report.html", "report.json"):
                stage.whole.log_file(tmp_path / name, f"report/{name}")

    kfp_server.started = log
    output = tmp_path / "a" / "b"
    result = submit(reporting_file, "--output", str(output), "--tracking-uri", uri)
    assert json.loads((output / "report.json").read_text()) == content
    assert (output / "report.html").read_text() == "<p>page</p>"
    assert "fgm fools it." in result.stdout
    assert f"Report: {output / 'report.html'}\n" in result.stdout
    assert "Downloading" not in result.stderr  # MLflow's own bar, a few times over each file


def test_a_missing_report_is_reported(submit, reporting_file, mlflow_store, tmp_path):
    uri = os.environ["MLFLOW_TRACKING_URI"]
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--tracking-uri", uri, code=5)
    assert "MLflow has no report of Kubeflow's run" in result.stderr
    assert list((tmp_path / "x").iterdir()) == []


def test_mlflow_is_reached_through_kubectl_too(submit, reporting_file, kubectl, tmp_path):
    """The service that the package names, in the run's namespace; here it is the other server, which is not MLflow."""
    kubectl()
    result = submit(reporting_file, "--output", str(tmp_path), "--port-forward", "--namespace", "signs", code=5)
    assert re.search(r"MLflow at http://127\.0\.0\.1:\d+ cannot be used", result.stderr)
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--namespace kubeflow --address 127.0.0.1 service/ml-pipeline-ui :80",
        "--namespace signs --address 127.0.0.1 service/mlflow :5000",
    ]


@pytest.mark.parametrize(
    ("ends", "code", "status"), [("FAILED", 1, "FAILED"), ("CANCELED", 3, "KILLED"), ("SUCCEEDED", 5, "KILLED")]
)
def test_open_runs_of_killed_pods_are_ended_in_mlflow(
    submit, kfp_server, reporting_file, mlflow_store, tmp_path, monkeypatch, ends, code, status
):
    kfp_server.story = Story(ends=ends)

    def leave(run):
        """Leave open runs, as steps of killed pods do, and an open run that belongs to another run of Kubeflow."""
        for kubeflow_run in (run.run_id, "other"):
            monkeypatch.setenv("KFP_RUN_ID", kubeflow_run)
            tracking.mark_pipeline_run("reporting", "RUNNING")
            stage_run.open_stage("report", {})
        monkeypatch.setenv("KFP_RUN_ID", run.run_id)
        with tracking.stage("infer", {}):
            pass

    kfp_server.started = leave
    uri = os.environ["MLFLOW_TRACKING_URI"]
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--tracking-uri", uri, code=code)
    experiments = [experiment.experiment_id for experiment in mlflow_store.search_experiments()]
    statuses = {
        (run.data.tags["kfp_run_id"] == "other", run.data.tags["stage"]): run.info.status
        for run in mlflow_store.search_runs(experiments)
    }
    assert statuses == {
        (False, "pipeline"): status,
        (False, "report"): status,
        (False, "infer"): "FINISHED",
        (True, "pipeline"): "RUNNING",
        (True, "report"): "RUNNING",
    }
    assert f"Open runs in MLflow ended as {status}: 2\n" in result.stderr


def test_the_end_of_a_run_is_reported_without_mlflow(submit, kfp_server, reporting_file, guarded, tmp_path):
    guarded.login = ":"  # none
    kfp_server.story = Story(ends="FAILED")
    kfp_server.started = lambda _: setattr(guarded, "login", "another")
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--tracking-uri", guarded.address, code=1)
    assert "Error: The run failed" in result.stderr
    assert "Could not end the open runs in MLflow" in result.stderr


class Guarded(BaseHTTPRequestHandler):
    """MLflow's API behind a login, with the responses of its own server; it has no data."""

    def do_GET(self):
        sent = self.headers.get("Authorization", "Basic Og==").removeprefix("Basic ")
        self.server.logins.append(base64.b64decode(sent).decode())
        allowed = self.server.logins[-1] == self.server.login
        body = b"{}" if allowed else b"You are not authenticated."
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.wfile.write(body)

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def guarded(monkeypatch, tmp_path):
    """An MLflow server at `.address` that requires a login."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        server.login, server.logins = "steps:right", []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_refused_login_to_mlflow_is_reported_before_the_run(
    submit, kfp_server, reporting_file, guarded, tmp_path, monkeypatch, password
):
    if password:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "steps")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    output = tmp_path / "x"
    result = submit(reporting_file, "--output", str(output), "--tracking-uri", guarded.address, code=5)
    refusal = "rejects the login of steps" if password else "requires a login"
    assert f"Error: MLflow at {guarded.address} {refusal}. Set MLFLOW_TRACKING_USERNAME and" in result.stderr
    assert "No run was started." in result.stderr
    assert kfp_server.runs == kfp_server.versions == {}
    assert not output.exists()


def test_an_unreachable_mlflow_is_reported_before_the_run(submit, kfp_server, reporting_file, tmp_path):
    where = ["--output", str(tmp_path / "x"), "--tracking-uri", "http://127.0.0.1:9"]
    assert "MLflow at http://127.0.0.1:9 cannot be used" in submit(reporting_file, *where, code=5).stderr
    assert kfp_server.runs == {}


def secret(username, password):
    """kubectl's output for a Secret."""
    values = {"MLFLOW_TRACKING_USERNAME": username, "MLFLOW_TRACKING_PASSWORD": password}
    return json.dumps({"data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}})


def test_through_kubectl_the_login_is_that_of_the_steps(submit, kfp_server, reporting_file, guarded, kubectl, tmp_path):
    kubectl(mlflow=guarded.address)
    (tmp_path / "secret.json").write_text(secret("steps", "right"))
    where = ["--output", str(tmp_path / "x"), "--port-forward", "--namespace", "signs"]
    result = submit(reporting_file, *where, code=5)
    assert "MLflow has no report of Kubeflow's run" in result.stderr  # requested after the run
    assert len(kfp_server.runs) == 1
    assert set(guarded.logins) == {"steps:right"}
    assert (tmp_path / "got").read_text().splitlines()[-1].startswith("secret evasion-mlflow --namespace signs ")
    assert "right" not in result.output
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_a_login_in_the_environment_takes_precedence_over_the_secret(
    submit, kfp_server, reporting_file, guarded, kubectl, tmp_path, monkeypatch
):
    kubectl(mlflow=guarded.address)
    (tmp_path / "secret.json").write_text(secret("steps", "right"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mine")
    guarded.login = "me:mine"
    submit(reporting_file, "--output", str(tmp_path / "x"), "--port-forward", code=5)
    assert set(guarded.logins) == {"me:mine"}
    assert len(kfp_server.runs) == 1


def test_a_secret_that_kubectl_does_not_show_is_named(submit, kfp_server, reporting_file, guarded, kubectl, tmp_path):
    kubectl(mlflow=guarded.address)
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--port-forward", code=5)
    assert "requires a login" in result.stderr
    assert "kubectl shows no login in Secret kubeflow/evasion-mlflow." in " ".join(result.stderr.split())
    assert kfp_server.runs == {}


def test_the_secrets_login_goes_to_no_other_server(submit, kfp_server, reporting_file, guarded, kubectl, tmp_path):
    kubectl()
    (tmp_path / "secret.json").write_text(secret("steps", "right"))
    where = ["--output", str(tmp_path / "x"), "--port-forward", "--tracking-uri", guarded.address]
    submit(reporting_file, *where, code=5)
    assert set(guarded.logins) == {":"}


# -- Ctrl-C


def interrupted(file, address, answer):
    """The exit code and the terminal of a run that is interrupted; `answer` is typed when it asks."""
    program = (
        "from evasion.pipelines.submit import watch; watch.INTERVAL = 0.05\n"
        "from evasion.pipelines.cli.main import main; main(prog_name='evasion')"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, "submit", *file, "--host", address],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
    )
    os.close(slave)
    seen = ""

    def until(text):
        nonlocal seen
        end = time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 65536).decode()

    try:
        until("✓")
        process.send_signal(signal.SIGINT)
        until("Terminate the run? [y/N]")
        os.write(master, answer)
        until("Run: http" if b"y" not in answer else "was cancelled")
        return process.wait(20), seen
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.mark.parametrize(("answer", "code", "state"), [(b"y\n", 3, "FAILED"), (b"n\n", 130, "RUNNING")])
def test_ctrl_c_asks_whether_to_terminate_the_run(kfp_server, file, answer, code, state):
    kfp_server.story = Story(ends=None)
    kfp_server.fail(503, method="POST", path="terminate")
    exit_code, seen = interrupted(file, kfp_server.address, answer)
    assert exit_code == code, seen
    assert re.search("✓.* 1/4 .*open the MLflow run", seen)
    assert only(kfp_server.runs).model.state == state


@pytest.mark.parametrize(
    ("options", "code", "message", "state"),
    [
        ([], 130, "interrupted; the run continues", "RUNNING"),
        (["--terminate-on-interrupt"], 3, "Error: The run was cancelled\n", "FAILED"),
    ],
)
def test_without_a_terminal_an_interrupt_does_what_the_options_say(submit, kfp_server, options, code, message, state):
    kfp_server.story = Story(ends=None)

    def interrupt():
        while not any(run.model.state == "RUNNING" for run in list(kfp_server.runs.values())):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = submit(*options, code=code)
    thread.join()
    assert message in result.stderr
    assert only(kfp_server.runs).model.state == state


# -- recurring runs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 2 * * *", "0 0 2 * * *"),
        (" */5 1-3 1,15 * MON-FRI ", "0 */5 1-3 1,15 * MON-FRI"),
        ("30 0 2 * * ?", "30 0 2 * * ?"),
        ("@daily", "@daily"),
        ("@every 1h30m", "@every 1h30m"),
    ],
)
def test_kubeflow_gets_six_fields(text, expected):
    assert cron.six_fields(text) == expected


@pytest.mark.parametrize("text", ["0 2 * *", "0 0 0 2 * * *", "@sometimes", "0 2 * * $", ""])
def test_an_invalid_cron_expression_is_refused(text):
    with pytest.raises(ValueError, match="Received: cron="):
        cron.six_fields(text)


def test_a_run_recurs(submit, kfp_server):
    result = submit("--cron", "0 2 * * *", "--run-name", "nightly")
    recurring = only(kfp_server.recurring)
    assert recurring.trigger.cron_schedule.cron == "0 0 2 * * *"
    assert recurring.no_catchup
    assert recurring.max_concurrency == "1"
    assert recurring.mode == "ENABLE"
    assert recurring.runtime_config.parameters["rounds"] == 3
    assert result.stdout == f"nightly recurs: 0 0 2 * * * (recurring run {recurring.recurring_run_id})\n"
    assert "cron: 0 0 2 * * *, where the first field is seconds, as Kubeflow expects" in result.stderr
    assert kfp_server.runs == {}

    assert "recurs already" in submit("--cron", "0 2 * * *", "--run-name", "nightly").stdout
    assert len(kfp_server.recurring) == 1
    result = submit("--cron", "0 3 * * *", "--run-name", "nightly")
    assert len(kfp_server.recurring) == 2
    assert f"! {recurring.recurring_run_id} has the same name" in result.stderr


def test_a_recurring_run_is_not_created_twice(submit, kfp_server):
    kfp_server.fail(RESET, method="POST", path="recurringruns", times=2, after=True)
    submit("--cron", "@daily")
    assert len(kfp_server.recurring) == 1
