"""Signals at random moments to every stage, and to `evasion run` itself, each followed by a rerun.

    make chaos

runs small pipelines once and keeps the command of each of their steps. Then, as often as `--moments` says, it starts a
step again, sends SIGTERM, SIGINT or SIGKILL to it at a random moment, lets the runner end what is left, and starts the
step once more in the same place. `run` is a whole `evasion run train`, in a fresh output folder at every other moment.
The moments lie between the start of a step and a tenth after its end, which the last undisturbed start tells: the load
of the machine may change. The table counts how many signals still met the step, and for each stage what must be 0;
docs/reliability.md has it.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from evasion.components.common import tracking
from evasion.components.common.models.artifact import CARD, FILE
from evasion.pipelines import catalog
from evasion.pipelines.local import process, runner, runs

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
COUNTS = ("RUNNING", "half-written", "broken database", "failed rerun")
CLASSES = ("n01440764", "n01443537")
PATIENCE = 30.0  # seconds for processes without a parent to end
LATEST = 1.1  # of a stage's duration: some signals come when it has just ended

Command = tuple[list[str], dict[str, str]]


@dataclass
class Moment:
    """A signal at a random moment.

    Attributes:
        number: The signal.
        after: Seconds after the start.
        met: Whether the process still ran.
    """

    number: signal.Signals
    after: float
    met: bool = False


def pictures(folder: Path) -> Path:
    """Write digits of two classes, named as two of ImageNet are: 16 to train, 8 to test."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, number in (("training", 8), ("testing", 4)):
        for digit, name in enumerate(CLASSES):
            target = folder / split / name
            target.mkdir(parents=True)
            for place in range(number):
                pixels = generator.integers(0, 100, (28, 28)) + 150 * (np.arange(28) % 2 == digit)
                Image.fromarray(pixels.astype("uint8")).save(target / f"{place}.png")
    return folder


def small_pipelines(data: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield pipelines that have every step between them, each with more arguments than it may take.

    One defense in the evaluation is enough: each further one multiplies the datasets, not the kinds of work. No network
    of keras.applications is built as fast as that of `init_model`.
    """
    folders = {"data_dir": str(data / "testing"), "data_dir_test": str(data / "testing")}
    common = {"batch_size": 16, "seed": 1, "eps": 0.1, "eps_values": "0.1", "pgd_attack_max_iter": 2} | folders
    trained = {"data_dir_train": str(data / "training"), "epochs": 1.0, "validation_split": 0.25}
    evaluation = catalog.evaluation("trained", ["fgm", "pgd", "auto_attack"], ["jpeg_compression"])
    yield evaluation, common | trained | {"model_architecture": "shallow_net"}
    for name in ("gaussian_augmentation", "spatial_smoothing"):
        yield catalog.pipelines()[name], common | {"model": "evasion_shallow_net"}
    yield catalog.pipelines()["init_model"], common | {"model_architecture": "mobilenet", "weights": "none"}


def recorded_steps(data: Path, output: Path) -> dict[str, Command]:
    """Run the small pipelines, and return the command of each step, once."""
    commands: dict[str, Command] = {}
    in_process = runner._in_process

    def record(launcher, image, command, variables, on_line):
        declared = json.loads(command[command.index("--executor_input") + 1])["outputs"]
        name = Path(declared["outputFile"]).parent.name
        local = [part.replace("python3 -m", f"{sys.executable} -m") for part in command]
        commands.setdefault(name, (local, {**os.environ, **variables}))
        return in_process(launcher, image, command, variables, on_line)

    runner._in_process = record
    try:
        for pipeline, arguments in small_pipelines(data):
            inputs = pipeline.component_spec.inputs
            runner.run(pipeline, {name: value for name, value in arguments.items() if name in inputs}, output=output)
    finally:
        runner._in_process = in_process
    return commands


def outputs_of(command: Command) -> list[Path]:
    """Return the paths of a step's artifacts."""
    declared = json.loads(command[0][command[0].index("--executor_input") + 1])["outputs"]
    return [Path(listed["artifacts"][0]["uri"]) for listed in declared.get("artifacts", {}).values()]


def content_of(path: Path) -> str:
    """Return a hash of the names and contents of an output; of a model, of its names and whether its hash is right."""
    if (path / CARD).is_file() and (path / FILE).is_file():
        right = (
            json.loads((path / CARD).read_text())["sha256"] == hashlib.sha256((path / FILE).read_bytes()).hexdigest()
        )
        return f"model {sorted(file.name for file in path.iterdir())} {right}"
    content = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        content.update(str(file.relative_to(path)).encode())
        content.update(file.read_bytes() if file.is_file() else b"")
    return content.hexdigest()


@contextmanager
def signalled(find: Callable[[], psutil.Process | None], moment: Moment) -> Iterator[None]:
    """Send a signal to a process at its moment, if it still runs."""

    def send() -> None:
        with suppress(psutil.Error):
            if (target := find()) is not None and target.status() != psutil.STATUS_ZOMBIE:
                target.send_signal(moment.number)
                moment.met = True

    timer = threading.Timer(moment.after, send)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def broken(database: Path) -> bool:
    """Return whether a database of SQLite is damaged."""
    with closing(sqlite3.connect(database)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchone() != ("ok",))


def running(database: Path, without: str = "") -> int:
    """Return the number of MLflow's open runs."""
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT count(*) FROM runs WHERE status = 'RUNNING' AND run_uuid != ?"
        return int(connection.execute(query, [without]).fetchone()[0])


class Stage:
    """A step that is started again and again.

    Args:
        command: Its command and variables.
        database: MLflow's database.
    """

    def __init__(self, command: Command, database: Path) -> None:
        self._command, self._database = command, database
        self._outputs = outputs_of(command)
        self._lines: list[str] = []
        self.expected: list[str] = []
        self.present: list[bool] = []
        self.duration = 0.0

    def _start(self, launcher: process.ProcessLauncher, parent: str) -> int:
        self._lines = []
        environment = self._command[1] | {"MLFLOW_RUN_ID": parent}
        return launcher.run(self._command[0], environment, self._lines.append)[0]

    def _remove_outputs(self) -> None:
        for path in self._outputs:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _start_undisturbed(self, launcher: process.ProcessLauncher, parent: str) -> int:
        started = time.monotonic()
        code = self._start(launcher, parent)
        self.duration = time.monotonic() - started
        return code

    def clean(self, launcher: process.ProcessLauncher, parent: str) -> list[str]:
        """Run it undisturbed in an empty place; return the content of its outputs."""
        self._remove_outputs()
        if code := self._start_undisturbed(launcher, parent):
            raise RuntimeError(f"The stage fails without a signal, with status {code}: {self._lines[-3:]}")
        self.present = self._present()
        return [content_of(path) for path in self._outputs]

    def _present(self) -> list[bool]:
        """Return which outputs are there; metrics are no file."""
        return [path.exists() for path in self._outputs]

    def _wrong(self) -> bool:
        """Return whether an output is there and is not the whole one."""
        pairs = zip(self._outputs, self.expected, strict=True)
        return any(path.exists() and was and content_of(path) != was for path, was in pairs)

    def disturbed(self, launcher: process.ProcessLauncher, moment: Moment) -> list[str]:
        """Run it with a signal, let the parent have its say, and run it again; return what must not be."""
        parent = os.environ["MLFLOW_RUN_ID"]
        self._remove_outputs()

        def step() -> psutil.Process | None:
            leaders = psutil.Process(launcher._zygote.pid).children()
            steps = [child for leader in leaders for child in leader.children()]
            return steps[0] if steps else None

        with signalled(step, moment):
            self._start(launcher, parent)
        tracking.end_stages(parent)
        found = []
        if running(self._database, without=parent):
            found.append("RUNNING")
        if self._wrong():
            found.append("half-written")
        if self._start_undisturbed(launcher, parent) or self._wrong() or self._present() != self.present:
            found.append("failed rerun")
            print("\n".join(self._lines[-5:]), file=sys.stderr, flush=True)
        if any(list(path.parent.glob(".*.partial")) for path in self._outputs):
            found.append("half-written")
        if broken(self._database):
            found.append("broken database")
        return found


def disturbed_run(data: Path, output: Path, moment: Moment) -> tuple[list[str], float]:
    """Send a signal to `evasion run train`, run it again; return what must not be, and how long that took."""
    command = [sys.executable, "-c", "from evasion.pipelines.cli.main import main; main()", "run", "train"]
    command += ["--data-dir-train", str(data / "training"), "--data-dir-test", str(data / "testing"), "--epochs", "1"]
    command += ["--model-architecture", "shallow_net", "--batch-size", "16", "--seed", "1", "--output", str(output)]
    disturbed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with signalled(lambda: psutil.Process(disturbed.pid), moment):
        disturbed.wait()
    started = time.monotonic()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    duration = time.monotonic() - started
    found = [] if again.returncode == 0 else ["failed rerun"]
    if found:
        print(again.stderr[-2_000:], file=sys.stderr, flush=True)
    database = output / "mlflow.db"
    deadline = time.monotonic() + PATIENCE
    while running(database) and time.monotonic() < deadline:
        time.sleep(0.5)
    if running(database):
        found.append("RUNNING")
    if any(run.record and run.record.state == "RUNNING" for run in runs.in_folder(output)):
        found.append("half-written")
    if broken(database):
        found.append("broken database")
    return found, duration


def main() -> int:
    """Disturb the stages and print what was counted; return 1 if something is not 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=100, help="Signals to each stage.")
    parser.add_argument("--stages", default="", help="Only these, separated by commas; `run` is `evasion run`.")
    parser.add_argument("--without-run", action="store_true", help="Only stages.")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the moments.")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    wanted = [name for name in options.stages.split(",") if name]
    counts: dict[str, Counter[str]] = {}
    print(f"{'stage':<28}{'moments':>8}{'met':>8}" + "".join(f"{name:>17}" for name in COUNTS))
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = Path(temporary)
        data = pictures(folder / "data")
        if not wanted or set(wanted) - {"run"}:
            _disturb_stages(options.moments, wanted, generator, data, folder / "runs", counts)
        if "run" in wanted or not (wanted or options.without_run):
            counts["run"] = _disturb_runs(options.moments, generator, data, folder)
    return int(any(counter[each] for counter in counts.values() for each in COUNTS))


def _disturb_stages(
    moments: int,
    wanted: list[str],
    generator: random.Random,
    data: Path,
    output: Path,
    counts: dict[str, Counter[str]],
) -> None:
    """Disturb each step of the small pipelines."""
    commands = recorded_steps(data, output)
    if unknown := set(wanted) - {"run", *commands}:
        raise ValueError(f"stages must be among {', '.join(commands)}, run. Received: {', '.join(sorted(unknown))}")
    database = output / "mlflow.db"
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    os.environ["EVASION_ARTIFACT_ROOT"] = str(output / "mlartifacts")
    with tracking.pipeline_run("chaos", {}) as parent, process.ProcessLauncher(os.environ) as launcher:
        os.environ["MLFLOW_RUN_ID"] = parent
        for name in [name for name in commands if not wanted or name in wanted]:
            stage = Stage(commands[name], database)
            first, second = stage.clean(launcher, parent), stage.clean(launcher, parent)
            # What differs without a signal cannot be compared.
            stage.expected = [one if one == other else "" for one, other in zip(first, second, strict=True)]
            print(f"{name}: {stage.duration:.1f} s without a signal", file=sys.stderr, flush=True)
            counter = counts[name] = Counter()
            for _ in range(moments):
                moment = _random(generator, stage.duration)
                _note(counter, name, moment, stage.disturbed(launcher, moment))
            _show(name, counter)


def _disturb_runs(moments: int, generator: random.Random, data: Path, folder: Path) -> Counter[str]:
    """Disturb whole runs, each folder's first one and a second one."""
    counter: Counter[str] = Counter()
    _, duration = disturbed_run(data, folder / "undisturbed", Moment(signal.SIGTERM, threading.TIMEOUT_MAX))
    print(f"run: {duration:.1f} s without a signal", file=sys.stderr, flush=True)
    for number in range(moments):
        moment = _random(generator, duration)
        found, duration = disturbed_run(data, folder / f"runs-{number // 2}", moment)
        _note(counter, "run", moment, found)
        if number % 2:
            shutil.rmtree(folder / f"runs-{number // 2}")
    _show("run", counter)
    return counter


def _random(generator: random.Random, duration: float) -> Moment:
    return Moment(generator.choice(SIGNALS), generator.uniform(0, LATEST * duration))


def _show(name: str, counter: Counter[str]) -> None:
    numbers = "".join(f"{counter[each]:>17}" for each in COUNTS)
    print(f"{name:<28}{counter['moments']:>8}{counter['met']:>8}{numbers}", flush=True)


def _note(counter: Counter[str], name: str, moment: Moment, found: list[str]) -> None:
    counter.update(["moments", *(["met"] if moment.met else []), *sorted(set(found))])
    if found:
        print(f"{name}: {moment.number.name} after {moment.after:.2f} s: {', '.join(found)}", flush=True)
    if counter["moments"] % 10 == 0:
        print(f"{name}: {dict(counter)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
