"""How requests to Kubeflow are repeated, and when the wait ends."""

import pytest
from kfp_server import RESET, Story
from submitting import only

from evasion.pipelines.cli.submit import command as submit_command
from evasion.pipelines.submit import host, watch


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
