"""Ctrl-C, and runs that recur."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from kfp_server import RESET, Story
from submitting import only

from evasion.pipelines.submit import cron


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
