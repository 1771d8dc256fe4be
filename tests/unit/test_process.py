"""`process.ProcessLauncher`: steps as forks of one process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from evasion.pipelines.local import process

EXECUTOR = ["sh", "-ec", "python3 -m kfp.dsl.executor_main"]


@pytest.fixture(scope="module")
def starter():
    with process.ProcessLauncher(os.environ) as running:
        yield running


def step(body, tmp_path):
    """A command as kfp compiles it, of a step that runs `body`."""
    source = "def probe():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    executor_input = f'{{"inputs": {{}}, "outputs": {{"outputFile": "{tmp_path / "output.json"}"}}}}'
    return [*EXECUTOR, source, "--executor_input", executor_input, "--function_to_execute", "probe"]


def run(starter, command, **variables):
    printed = []
    code, lines = starter.run(command, {**os.environ, **variables}, printed.append)
    assert lines == printed[-process.KEPT_LINES :]
    return code, [line for line in printed if line.startswith("> ")]


def test_a_step_prints_ends_and_sees_its_variables(starter, tmp_path):
    body = "import os, tempfile\nprint('>', os.environ['WHO'], os.environ['_KFP_RUNTIME'], tempfile.gettempdir())"
    code, lines = run(starter, step(body, tmp_path), WHO="step")
    assert code == 0
    who, runtime, folder = lines[0].split()[1:]
    assert (who, runtime) == ("step", "true")
    assert Path(folder).name.startswith("evasion-")
    assert not Path(folder).exists()


def test_steps_do_not_draw_the_same_random_numbers(starter, tmp_path):
    body = "import random, numpy as np\nprint('>', random.random(), np.random.random())"
    draws = [run(starter, step(body, tmp_path))[1][0].split()[1:] for _ in range(2)]
    assert draws[0][0] != draws[1][0]
    assert draws[0][1] != draws[1][1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise ValueError('eps')", 1),
        ("import sys; sys.exit(4)", 4),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import os, signal; os.killpg(0, signal.SIGKILL)", -9),
    ],
)
def test_the_status_of_a_step_that_fails(starter, tmp_path, body, status):
    assert run(starter, step(body, tmp_path))[0] == status


def test_another_command_is_run_unchanged(starter):
    assert run(starter, ["sh", "-c", 'echo "> $WHO"; exit 3'], WHO="shell") == (3, ["> shell"])


def test_two_steps_run_at_once(starter, tmp_path):
    """Each waits for the other's file."""
    body = (
        "import pathlib, time\n"
        "mine, other = pathlib.Path({mine!r}), pathlib.Path({other!r})\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)"
    )
    places = [str(tmp_path / "a"), str(tmp_path / "b")]
    codes = []
    threads = [
        threading.Thread(
            target=lambda mine=mine, other=other: codes.append(
                run(starter, step(body.format(mine=mine, other=other), tmp_path))[0]
            )
        )
        for mine, other in (places, places[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert codes == [0, 0]


def test_an_interrupt_reaches_the_step_and_what_it_started(starter, tmp_path):
    def on_line(line):
        if line == "> ready":
            raise KeyboardInterrupt

    started, interrupted = tmp_path / "pid", tmp_path / "interrupted"
    body = (
        "import subprocess, pathlib\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "try:\n"
        "    print('> ready')\n"
        "    child.wait()\n"
        "except KeyboardInterrupt:\n"
        f"    pathlib.Path({str(interrupted)!r}).touch()\n"
        "    raise"
    )
    with pytest.raises(KeyboardInterrupt):
        starter.run(step(body, tmp_path), os.environ, on_line)
    assert interrupted.exists()
    for _ in range(100):
        try:
            os.kill(int(started.read_text()), 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process that the step started is still running")


def test_a_killed_starter_is_reported_as_a_killed_step(tmp_path):
    with process.ProcessLauncher(os.environ) as running:
        os.kill(running._zygote.pid, signal.SIGKILL)
        running._zygote.wait()
        assert run(running, step("pass", tmp_path)) == (-signal.SIGKILL, [])


ABANDONED = """
import json, os, sys
from evasion.pipelines.local import process
with process.ProcessLauncher(os.environ) as running:
    def on_line(line):
        if line == "> ready":
            os.kill(os.getpid(), 9)
    running.run(json.loads(sys.argv[1]), os.environ, on_line)
"""


def test_a_step_is_terminated_when_the_process_that_waits_for_it_is_killed(tmp_path):
    terminated = tmp_path / "terminated"
    body = (
        "import pathlib, signal, time\n"
        "def end(*_):\n"
        f"    pathlib.Path({str(terminated)!r}).touch()\n"
        "    raise SystemExit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('> ready', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", ABANDONED, json.dumps(step(body, tmp_path))]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while not terminated.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("code", [-signal.SIGTERM, 143])
def test_the_error_of_a_terminated_step(code):
    assert process.error(["progress: 1/2 images"], code) == "ended by the signal SIGTERM of another process"
