"""`evasion submit`, against a server that speaks Kubeflow Pipelines' API, with faults in its way."""

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
    """No waiting for what a test has to wait for often; nothing of the environment that says where or who."""
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


def only(held):
    (one,) = held.values()
    return one


def test_a_pipeline_is_uploaded_once_run_and_followed(submit, kfp_server):
    kfp_server.story = Story(per_look=1)
    result = submit(
        "fgm", *FGM, "--eps", "0.1", "--run-name", "nightly", "--experiment", "signs", "--git-commit", "c0ffee"
    )
    run = only(kfp_server.runs).model
    assert result.stdout == f"Run: {kfp_server.address}/#/runs/details/{run.run_id}\n"
    assert run.display_name == "nightly"
    assert run.description.startswith("evasion submit fgm, commit c0ffee (submission ")
    given = run.runtime_config.parameters
    assert given["data_dir"] == "/data/test"  # a path of the cluster's, which is not here
    assert given["eps"] == 0.1
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


def test_a_compiled_file_is_submitted_as_it_is(submit, kfp_server, file):
    submit("--no-wait")
    assert only(kfp_server.packages) == Path(file[0]).read_bytes()
    given = only(kfp_server.runs).model.runtime_config.parameters
    assert {name: given[name] for name in ("rounds", "strict")} == {"rounds": 3, "strict": True}
    assert given["kubeflow_link"] == kfp_server.address
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?|", given["git_commit"])
    shown = " ".join(submit(file[0], "--help").stdout.split())
    assert "--rounds INTEGER How often. [required]" in shown
    assert "--memory" not in shown  # which the file has settled


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fgm", *FGM, "--eps", "2"], "Set --eps."),
        (["fgm", "--data-dir", "x", "--model", "m"], "Missing option '--model-architecture'"),
        ([str(COMPILED / "fgm.yaml"), *FGM, "--eps", "2"], "Set --eps."),
        (["fgm", *FGM, "--memory", "0"], "Set --memory."),
        (["fgm", *FGM, "--step-timeout", "-1"], "Set --step-timeout."),
        (["--cron", "every day"], "Set --cron."),
        (["--timeout", "soon"], "no duration"),
        (["--output", "x"], "needs a pipeline that makes a report"),
        ([*EVALUATION, "--output", "x"], "Set --tracking-uri."),
        ([*EVALUATION, "--output", "x", "--no-wait"], "Leave out --no-wait."),
        ([*EVALUATION, "--output", "x", "--cron", "@daily"], "Leave out --cron."),
        ([*EVALUATION, "--attacks", "fgn"], "fgn"),
        ([*EVALUATION, "--data-dir-test", " "], "data_dir must be given"),
        (["fgn"], "No such pipeline: fgn."),
        (["missing.yaml"], "missing.yaml"),
        ([__file__.replace(".py", ".yaml")], "test_submit.yaml"),
        (["--port-forward", "--host", "http://x"], "give one"),
        (["--host", "kubeflow.example"], "http:// or https://"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(submit, kfp_server, arguments, said):
    assert said in " ".join(submit(*arguments, code=2).stderr.split())
    assert kfp_server.asked == []


def test_a_file_that_is_no_pipeline_is_refused(submit, tmp_path):
    for content in ("", "a: b", "{", "components: {}\nroot: {dag: {tasks: {}}}\npipelineInfo: {name: x}"):
        (tmp_path / "x.yaml").write_text(content)
        assert "must be the YAML of a compiled pipeline" in submit(str(tmp_path / "x.yaml"), code=2).stderr


def test_without_a_host_it_is_asked_for(file):
    result = CliRunner().invoke(main.main, ["submit", *file])
    assert result.exit_code == 2
    assert "Set --host or --port-forward." in result.stderr


@pytest.mark.parametrize("name", list(catalog.pipelines()))
def test_no_option_bears_the_name_of_another(name):
    made = submit_command._command(commands.command(name))
    names = [one.name for one in made.params]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("ends", "code"), [("FAILED", 1), ("CANCELED", 3), ("SKIPPED", 3)])
def test_how_a_run_ends_is_the_exit_code(submit, kfp_server, ends, code):
    kfp_server.story = Story(ends=ends)
    result = submit(code=code)
    assert f"Run: {kfp_server.address}/#/runs/details/" in result.stderr.splitlines()[-1]


def test_shards_find_what_is_imported_for_them(submit, kfp_server):
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
    # What the step says comes first, and again at the end.
    said = "measure: eps must be in (0, 1]. Received: eps=-0.3\n"
    head, shown = result.stderr.split(
        "The last lines of measure (pod evasion-measuring-x7k2p-retry-system-container-impl-"
    )
    assert head.endswith(said)
    assert f"Error: The run failed: {said}" in shown
    assert "    line 299\n    Traceback" in shown
    assert "line 110\n" in shown
    assert "line 99\n" not in shown
    assert "The last lines of judge" not in result.stderr


def test_an_error_in_a_logs_place_is_no_log(submit, kfp_server):
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


def test_where_no_step_failed_the_node_is_named_that_did(submit, kfp_server):
    said = "The specified bucket does not exist"
    kfp_server.story = Story(ends="FAILED", fails="root-driver", error=said)
    assert f"Error: The run failed: the driver of root: {said}\n" in submit(code=1).stderr


def test_of_shards_the_one_that_failed_counts_and_its_log_is_shown(submit, kfp_server):
    kfp_server.story = Story(ends="FAILED", fails="fgm", fails_in=1, error="exit code 1", log={"fgm": "No eps."})
    result = submit(*EVALUATION, "--shards", "3", code=1)
    assert "fgm: failed in 5.0 s: exit code 1" in result.stderr
    assert "The last lines of fgm (pod evasion-evaluation-registered-x7k2p-" in result.stderr
    assert "    No eps.\n" in result.stderr
    assert "All is well." not in result.stderr


def test_of_the_rounds_of_a_loop_the_one_counts_that_has_come_the_least_far():
    def state(*states):
        nodes = [workflow.Node("fgm", one) for one in states]
        (progress,) = watch.progress(nodes, [SimpleNamespace(task="fgm")])
        return progress.state

    assert state("SUCCEEDED", "FAILED", "SUCCEEDED") == "FAILED"
    assert state("RUNNING", "SUCCEEDED") == state("SUCCEEDED", "RUNNING") == "RUNNING"
    assert state("SUCCEEDED", "SUCCEEDED") == "SUCCEEDED"


def test_port_forward_outdoes_the_variable(monkeypatch):
    monkeypatch.setenv("KFP_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", "/nowhere")
    result = CliRunner().invoke(main.main, ["submit", "fgm", *FGM, "--port-forward"])
    assert result.exit_code == 5
    assert "kubectl" in result.stderr


def test_a_log_that_is_not_to_be_had_is_told_where_to_look_for(submit, kfp_server):
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
def test_reading_is_tried_again(submit, kfp_server, fault):
    for path in ("healthz", "experiments", "pipelines$", "versions", "runs/"):
        kfp_server.fail(fault, path=path, times=3)
    submit()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fault", [500, RESET])
def test_nothing_is_made_twice(submit, kfp_server, fault, after):
    """Whether the host failed before or after it had done its work."""
    for path in ("experiments", "pipelines$", "upload_version", "runs"):
        kfp_server.fail(fault, method="POST", path=path, times=2, after=after)
    submit("--run-name", "x", "--no-wait")
    for held in (kfp_server.experiments, kfp_server.pipelines, kfp_server.versions, kfp_server.runs):
        assert len(held) == 1


def test_a_run_of_the_same_name_is_not_taken_for_this_one(submit, kfp_server):
    submit("--run-name", "x", "--no-wait")
    kfp_server.fail(500, method="POST", path="runs")
    submit("--run-name", "x", "--no-wait")
    assert len(kfp_server.runs) == 2


def test_a_slow_answer_is_asked_for_again(submit, kfp_server, monkeypatch):
    monkeypatch.setattr(host, "READ", 0.2)
    kfp_server.fail(0.6, path="runs/", times=2)
    submit()


def test_a_host_that_is_away_for_a_while_is_waited_for(submit, kfp_server):
    kfp_server.story = Story(per_look=1)
    kfp_server.fail(503, path="runs/", times=20)  # more than one look's retries
    result = submit()
    assert result.stderr.count("trying again: ") == 1


def test_a_host_that_stays_away_ends_the_wait(submit, kfp_server, monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE", 0.1)
    kfp_server.fail(503, path="runs/", times=10**6)
    assert "503" in submit(code=5).stderr


def test_a_host_that_does_not_answer_is_said(submit):
    result = submit("--host", "http://127.0.0.1:9", code=5)
    assert "http://127.0.0.1:9 does not answer" in result.stderr


def test_what_the_host_refuses_is_said(submit, kfp_server):
    kfp_server.fail(400, method="POST", path="runs")
    assert "400 fault" in submit(code=1).stderr


def test_a_time_limit_ends_the_wait_and_not_the_run(submit, kfp_server):
    kfp_server.story = Story(ends=None)
    started = time.monotonic()
    result = submit("--timeout", "1s", code=4)
    assert 1 <= time.monotonic() - started < 5
    assert "it goes on" in result.stderr
    assert only(kfp_server.runs).model.state == "RUNNING"


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("2h30m", 9000), ("45", 45), ("1h 1s", 3601)])
def test_durations_are_read(text, seconds):
    assert submit.Duration().convert(text, None, None) == seconds


# -- who asks


def test_a_token_is_sent(submit, kfp_server, monkeypatch):
    kfp_server.tokens = {"secret"}
    submit("--token", "secret", "--no-wait")
    monkeypatch.setenv("KFP_TOKEN", "secret")
    submit("--no-wait")
    monkeypatch.setenv("KFP_TOKEN", "expired")
    result = submit(code=5)
    assert "401 the token has expired. Set --token, --token-command or --cookie." in result.stderr
    assert "secret" not in result.output


def test_a_token_that_expires_is_taken_anew_from_the_command(submit, kfp_server, tmp_path):
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


def test_in_a_pod_the_service_accounts_token_is_read_anew(kfp_server, file, tmp_path, monkeypatch):
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
    ("line", "said"),
    [
        ("sh -c 'echo no >&2; exit 3'", "ended with 3: no"),
        ("no-such-command", "does not run"),
        ("true", "printed nothing"),
    ],
)
def test_a_token_command_that_fails_is_said(submit, line, said):
    assert said in submit("--token-command", line, code=5).stderr


def test_a_cookie_is_sent(submit, kfp_server):
    kfp_server.cookies = {"authservice_session=1"}
    submit("--cookie", "authservice_session=1", "--no-wait")
    assert "403 forbidden" in submit("--no-wait", code=5).stderr


def test_a_log_in_page_is_no_answer(submit, kfp_server):
    kfp_server.log_in_page = True
    assert "answers with a web page, as a log-in does" in submit(code=5).stderr


def test_a_host_of_several_users_needs_the_namespace(submit, kfp_server):
    kfp_server.multi_user = True
    assert "Set --namespace." in submit(code=2).stderr
    submit("--namespace", "signs")
    assert kfp_server.count("GET", "pipelines$") == 1


def test_a_proxy_is_used_unless_it_is_to_be_passed_by(submit, kfp_server, monkeypatch):
    monkeypatch.setenv("http_proxy", kfp_server.address)  # it answers for any host
    monkeypatch.delenv("no_proxy", raising=False)
    submit("--host", "http://kubeflow.invalid", "--no-wait")
    assert len(kfp_server.runs) == 1
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    submit("--no-wait")


@pytest.fixture
def certificate(tmp_path):
    """A file with a key and a certificate of localhost that nobody else has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path / "localhost.pem"
    file.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return str(file)


def test_a_host_must_show_a_certificate_that_is_trusted(submit, certificate, monkeypatch):
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
    """A kubectl that carries a port to the server, as the real one does."""

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
    # What is said to be the run's page outlives the way through kubectl.
    assert f"Run: http://127.0.0.1:8080/#/runs/details/{only(kfp_server.runs).model.run_id}" in result.stdout
    assert "kubectl port-forward --namespace kubeflow service/ml-pipeline-ui 8080:80" in result.stderr


def test_a_way_that_breaks_is_opened_again(submit, kfp_server, kubectl, monkeypatch):
    monkeypatch.setattr("evasion.pipelines.submit.forward.PAUSE", 0.05)
    monkeypatch.setattr(host, "BACKOFF", 0.1)
    kfp_server.story = Story(per_look=1)
    kubectl(connections=1)
    kfp_server.fail(RESET, path="runs/", times=2)  # so that more than one connection is needed
    submit("--port-forward")


def slices(*ready):
    """What kubectl says of a Service's endpoints, of which each is ready, is not, or does not say."""
    endpoints = [{"addresses": ["10.0.0.1"], "conditions": {} if one is None else {"ready": one}} for one in ready]
    return {"items": [{"endpoints": endpoints or None}]}


@pytest.mark.parametrize("found", [slices(), slices(False, False)])
def test_a_service_without_a_ready_pod_is_said_at_once(submit, kubectl, tmp_path, found):
    kubectl()
    (tmp_path / "endpointslices.json").write_text(json.dumps(found))
    started = time.monotonic()
    result = submit("--port-forward", code=5)
    assert time.monotonic() - started < 5
    assert (
        "Error: Service kubeflow/ml-pipeline-ui has no ready pod. See: kubectl --namespace kubeflow get pods\n"
        in result.stderr
    )
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("found", [slices(False, True), slices(None), {"items": []}])
def test_a_service_that_may_have_a_ready_pod_is_reached(submit, kfp_server, kubectl, tmp_path, found):
    kubectl()
    (tmp_path / "endpointslices.json").write_text(json.dumps(found))
    submit("--port-forward")
    assert len(kfp_server.runs) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho 'error: services not found' >&2\nexit 1\n", "error: services not found"),
        (None, "needs kubectl"),
    ],
)
def test_no_way_to_the_host_is_said(submit, kubectl, monkeypatch, text, said):
    if text:
        kubectl(text)
    else:
        monkeypatch.setenv("PATH", "/nowhere")
    assert said in submit("--port-forward", code=5).stderr


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
    summary = {"headline": "fgm fools it.", "table": [], "checks": []}
    uri = os.environ["MLFLOW_TRACKING_URI"]

    def log(run):
        """As the steps of the run do."""
        monkeypatch.setenv("KFP_RUN_ID", run.run_id)
        (tmp_path / "report.html").write_text("<p>page</p>")
        (tmp_path / "report.json").write_text(json.dumps(summary))
        tracking.mark_pipeline_run("reporting", "RUNNING")
        with tracking.stage("report", {}) as stage:
            for name in ("report.html", "report.json"):
                stage.whole.log_file(tmp_path / name, f"report/{name}")

    kfp_server.started = log
    output = tmp_path / "a" / "b"
    result = submit(reporting_file, "--output", str(output), "--tracking-uri", uri)
    assert json.loads((output / "report.json").read_text()) == summary
    assert (output / "report.html").read_text() == "<p>page</p>"
    assert "fgm fools it." in result.stdout
    assert f"Report: {output / 'report.html'}\n" in result.stdout
    assert "Downloading" not in result.stderr  # MLflow's own bar, a few times over each file


def test_a_report_that_is_missing_is_said(submit, reporting_file, mlflow_store, tmp_path):
    uri = os.environ["MLFLOW_TRACKING_URI"]
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--tracking-uri", uri, code=5)
    assert "MLflow holds no report of Kubeflow's run" in result.stderr
    assert list((tmp_path / "x").iterdir()) == []


def test_mlflow_is_reached_through_kubectl_too(submit, reporting_file, kubectl, tmp_path):
    """The service that the package names, in the run's namespace; here it is the other server, which is no MLflow."""
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
def test_runs_in_mlflow_that_killed_pods_have_left_are_ended(
    submit, kfp_server, reporting_file, mlflow_store, tmp_path, monkeypatch, ends, code, status
):
    kfp_server.story = Story(ends=ends)

    def leave(run):
        """What steps leave whose pods are killed, beside a run that another run of Kubeflow still works at."""
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
    experiments = [one.experiment_id for one in mlflow_store.search_experiments()]
    found = {
        (run.data.tags["kfp_run_id"] == "other", run.data.tags["stage"]): run.info.status
        for run in mlflow_store.search_runs(experiments)
    }
    assert found == {
        (False, "pipeline"): status,
        (False, "report"): status,
        (False, "infer"): "FINISHED",
        (True, "pipeline"): "RUNNING",
        (True, "report"): "RUNNING",
    }
    assert f"Runs in MLflow that were left open and are {status} now: 2\n" in result.stderr


def test_how_a_run_ended_is_told_where_mlflow_is_gone_by_then(submit, kfp_server, reporting_file, guarded, tmp_path):
    guarded.login = ":"  # none
    kfp_server.story = Story(ends="FAILED")
    kfp_server.started = lambda _: setattr(guarded, "login", "another")
    result = submit(reporting_file, "--output", str(tmp_path / "x"), "--tracking-uri", guarded.address, code=1)
    assert "Error: The run failed" in result.stderr
    assert "Could not see to the runs in MLflow" in result.stderr


class Guarded(BaseHTTPRequestHandler):
    """MLflow's API behind a login, as its own server answers without the right one; it holds nothing."""

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
    """An MLflow that asks for a login, at `.address`."""
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
def test_a_login_that_mlflow_does_not_take_is_said_before_there_is_a_run(
    submit, kfp_server, reporting_file, guarded, tmp_path, monkeypatch, password
):
    if password:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "steps")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    output = tmp_path / "x"
    result = submit(reporting_file, "--output", str(output), "--tracking-uri", guarded.address, code=5)
    said = "does not take the login of steps" if password else "asks for a login"
    assert f"Error: MLflow at {guarded.address} {said}. Set MLFLOW_TRACKING_USERNAME and" in result.stderr
    assert "No run was started." in result.stderr
    assert kfp_server.runs == kfp_server.versions == {}
    assert not output.exists()


def test_an_mlflow_that_is_away_is_said_before_there_is_a_run(submit, kfp_server, reporting_file, tmp_path):
    where = ["--output", str(tmp_path / "x"), "--tracking-uri", "http://127.0.0.1:9"]
    assert "MLflow at http://127.0.0.1:9 cannot be used" in submit(reporting_file, *where, code=5).stderr
    assert kfp_server.runs == {}


def secret(username, password):
    """What kubectl says of a Secret."""
    values = {"MLFLOW_TRACKING_USERNAME": username, "MLFLOW_TRACKING_PASSWORD": password}
    return json.dumps({"data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}})


def test_through_kubectl_the_login_is_that_of_the_steps(submit, kfp_server, reporting_file, guarded, kubectl, tmp_path):
    kubectl(mlflow=guarded.address)
    (tmp_path / "secret.json").write_text(secret("steps", "right"))
    where = ["--output", str(tmp_path / "x"), "--port-forward", "--namespace", "signs"]
    result = submit(reporting_file, *where, code=5)
    assert "MLflow holds no report of Kubeflow's run" in result.stderr  # which it was asked for, after the run
    assert len(kfp_server.runs) == 1
    assert set(guarded.logins) == {"steps:right"}
    assert (tmp_path / "got").read_text().splitlines()[-1].startswith("secret evasion-mlflow --namespace signs ")
    assert "right" not in result.output
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_a_login_of_the_environment_outdoes_the_secret(
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
    assert "asks for a login" in result.stderr
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
        "from evasion.pipelines.cli import main; main(prog_name='evasion')"
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
    found, seen = interrupted(file, kfp_server.address, answer)
    assert found == code, seen
    assert re.search("✓.* 1/4 .*open the MLflow run", seen)
    assert only(kfp_server.runs).model.state == state


@pytest.mark.parametrize(
    ("options", "code", "said", "state"),
    [
        ([], 130, "interrupted; the run goes on", "RUNNING"),
        (["--terminate-on-interrupt"], 3, "Error: The run was cancelled\n", "FAILED"),
    ],
)
def test_without_a_terminal_an_interrupt_does_what_the_options_say(submit, kfp_server, options, code, said, state):
    kfp_server.story = Story(ends=None)

    def interrupt():
        while not any(run.model.state == "RUNNING" for run in list(kfp_server.runs.values())):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = submit(*options, code=code)
    thread.join()
    assert said in result.stderr
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
def test_what_is_no_cron_expression_is_refused(text):
    with pytest.raises(ValueError, match="Received: cron="):
        cron.six_fields(text)


def test_a_run_recurs(submit, kfp_server):
    result = submit("--cron", "0 2 * * *", "--run-name", "nightly")
    made = only(kfp_server.recurring)
    assert made.trigger.cron_schedule.cron == "0 0 2 * * *"
    assert made.no_catchup
    assert made.max_concurrency == "1"
    assert made.mode == "ENABLE"
    assert made.runtime_config.parameters["rounds"] == 3
    assert result.stdout == f"nightly recurs: 0 0 2 * * * (recurring run {made.recurring_run_id})\n"
    assert "cron: 0 0 2 * * *, of which Kubeflow takes the first field for seconds" in result.stderr
    assert kfp_server.runs == {}

    assert "recurs already" in submit("--cron", "0 2 * * *", "--run-name", "nightly").stdout
    assert len(kfp_server.recurring) == 1
    result = submit("--cron", "0 3 * * *", "--run-name", "nightly")
    assert len(kfp_server.recurring) == 2
    assert f"! {made.recurring_run_id} bears this name too" in result.stderr


def test_a_recurring_run_is_not_made_twice(submit, kfp_server):
    kfp_server.fail(RESET, method="POST", path="recurringruns", times=2, after=True)
    submit("--cron", "@daily")
    assert len(kfp_server.recurring) == 1
