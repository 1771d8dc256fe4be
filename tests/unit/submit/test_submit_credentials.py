"""As whom `evasion submit` asks, and how it reaches the host."""

import json

import pytest
from click.testing import CliRunner
from kfp_server import RESET, Story, serving
from submitting import only

from evasion.pipelines.cli import main
from evasion.pipelines.cli.submit import job
from evasion.pipelines.submit import auth, host


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


def test_a_host_must_have_a_trusted_certificate(submit, certificate, monkeypatch):
    for name in host.CERTIFICATES:
        monkeypatch.delenv(name, raising=False)
    with serving(certificate=certificate) as server:
        assert "CERTIFICATE_VERIFY_FAILED" in submit("--host", server.address, code=5).stderr
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        submit("--host", server.address)
        assert len(server.runs) == 1


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


def test_a_password_in_the_address_is_refused_and_not_shown(submit):
    result = submit("--host", "http://somebody:hunter2@kubeflow.example", code=2)
    assert "host must be without a user name and a password" in result.stderr
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("address", "credentials", "warned"),
    [
        ("http://kubeflow.invalid", ("--token", "secret"), True),
        ("http://kubeflow.invalid", ("--cookie", "secret"), True),
        ("http://kubeflow.invalid", (), False),
        ("https://kubeflow.invalid", ("--token", "secret"), False),
        ("http://127.0.0.1:1", ("--token", "secret"), False),
        ("http://localhost:1", ("--token", "secret"), False),
    ],
)
def test_credentials_over_plain_http_are_warned_of(submit, address, credentials, warned):
    result = submit("--host", address, *credentials, code=5)
    assert ("over plain http" in result.stderr) == warned
    assert "secret" not in result.output
