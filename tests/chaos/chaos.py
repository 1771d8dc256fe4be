"""Signals at random moments to every stage, and to `evasion run` itself, each followed by a rerun.

    make chaos

runs a small evaluation once and keeps the command of each of its steps. Then, as often as `--moments` says, it starts a
step again, sends SIGTERM, SIGINT or SIGKILL to it at a random moment, lets the runner end what is left, and starts the
step once more in the same place. `run` is a whole `evasion run train`, in a fresh output folder at every other moment.
The table counts for each stage what must be 0; docs/reliability.md has it.
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
from pathlib import Path

import psutil

from evasion.components.common import tracking
from evasion.components.common.models.artifact import CARD, FILE
from evasion.pipelines import catalog
from evasion.pipelines.local import process, runner, runs

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
COUNTS = ("RUNNING", "half-written", "broken database", "failed rerun")
LIGHT = {"batch_size": 16, "seed": 1}
PATIENCE = 30.0  # seconds for processes without a parent to end

Command = tuple[list[str], dict[str, str]]


def pictures(folder: Path) -> Path:
    """Write digits of two classes: 16 to train, 8 to test."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, number in (("training", 8), ("testing", 4)):
        for digit in range(2):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for place in range(number):
                pixels = generator.integers(0, 100, (28, 28)) + 150 * (np.arange(28) % 2 == digit)
                Image.fromarray(pixels.astype("uint8")).save(target / f"{place}.png")
    return folder


def recorded_steps(data: Path, output: Path) -> dict[str, Command]:
    """Run an evaluation of a trained and one of a registered model, and return the command of each of their steps."""
    commands: dict[str, Command] = {}
    in_process = runner._in_process

    def record(launcher, image, command, variables, on_line):
        declared = json.loads(command[command.index("--executor_input") + 1])["outputs"]
        name = Path(declared["outputFile"]).parent.name
        local = [part.replace("python3 -m", f"{sys.executable} -m") for part in command]
        commands.setdefault(name, (local, {**os.environ, **variables}))
        return in_process(launcher, image, command, variables, on_line)

    runner._in_process = record
    attacks = ["fgm", "pgd", "auto_attack"]
    defenses = ["gaussian_augmentation", "jpeg_compression", "spatial_smoothing"]
    common = {"data_dir_test": str(data / "testing"), "model_architecture": "shallow_net", "eps": 0.1} | LIGHT
    light = common | {"eps_values": "0.1", "pgd_attack_max_iter": 2}
    try:
        for source, more in (
            ("trained", {"data_dir_train": str(data / "training"), "epochs": 1.0, "validation_split": 0.25}),
            ("registered", {"model": "evasion_shallow_net"}),
        ):
            pipeline = catalog.evaluation(source, attacks, defenses)
            inputs = pipeline.component_spec.inputs
            arguments = {name: value for name, value in (light | more).items() if name in inputs}
            runner.run(pipeline, arguments, output=output)
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
def signalled(find: Callable[[], psutil.Process | None], number: signal.Signals, after: float) -> Iterator[None]:
    """Send a signal to a process after some seconds, if it still runs."""

    def send() -> None:
        with suppress(psutil.Error):
            if (target := find()) is not None:
                target.send_signal(number)

    timer = threading.Timer(after, send)
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

    def _start(self, launcher: process.ProcessLauncher, parent: str) -> int:
        self._lines = []
        environment = self._command[1] | {"MLFLOW_RUN_ID": parent}
        return launcher.run(self._command[0], environment, self._lines.append)[0]

    def _remove_outputs(self) -> None:
        for path in self._outputs:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def clean(self, launcher: process.ProcessLauncher, parent: str) -> tuple[float, list[str]]:
        """Run it undisturbed in an empty place; return its duration and the content of its outputs."""
        self._remove_outputs()
        started = time.monotonic()
        if code := self._start(launcher, parent):
            raise RuntimeError(f"The stage fails without a signal, with status {code}: {self._lines[-3:]}")
        self.present = self._present()
        return time.monotonic() - started, [content_of(path) for path in self._outputs]

    def _present(self) -> list[bool]:
        """Return which outputs are there; metrics are no file."""
        return [path.exists() for path in self._outputs]

    def _wrong(self) -> bool:
        """Return whether an output is there and is not the whole one."""
        pairs = zip(self._outputs, self.expected, strict=True)
        return any(path.exists() and was and content_of(path) != was for path, was in pairs)

    def disturbed(self, launcher: process.ProcessLauncher, number: signal.Signals, after: float) -> list[str]:
        """Run it with a signal, let the parent have its say, and run it again; return what must not be."""
        parent = os.environ["MLFLOW_RUN_ID"]
        self._remove_outputs()

        def step() -> psutil.Process | None:
            leaders = psutil.Process(launcher._zygote.pid).children()
            steps = [child for leader in leaders for child in leader.children()]
            return steps[0] if steps else None

        with signalled(step, number, after):
            self._start(launcher, parent)
        tracking.end_stages(parent)
        found = []
        if running(self._database, without=parent):
            found.append("RUNNING")
        if self._wrong():
            found.append("half-written")
        if self._start(launcher, parent) or self._wrong() or self._present() != self.present:
            found.append("failed rerun")
        if any(list(path.parent.glob(".*.partial")) for path in self._outputs):
            found.append("half-written")
        if broken(self._database):
            found.append("broken database")
        return found


def disturbed_run(data: Path, output: Path, number: signal.Signals, after: float) -> list[str]:
    """Send a signal to `evasion run train`, run it again, and return what must not be."""
    command = [sys.executable, "-c", "from evasion.pipelines.cli.main import main; main()", "run", "train"]
    command += ["--data-dir-train", str(data / "training"), "--data-dir-test", str(data / "testing"), "--epochs", "1"]
    command += ["--model-architecture", "shallow_net", "--batch-size", "16", "--seed", "1", "--output", str(output)]
    disturbed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with signalled(lambda: psutil.Process(disturbed.pid), number, after):
        disturbed.wait()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [] if again.returncode == 0 else ["failed rerun"]
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
    return found


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
    print(f"{'stage':<28}{'moments':>8}" + "".join(f"{name:>17}" for name in COUNTS))
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = Path(temporary)
        data = pictures(folder / "data")
        if not wanted or set(wanted) - {"run"}:
            _disturb_stages(options.moments, wanted, generator, data, folder / "runs", counts)
        if "run" in wanted or not (wanted or options.without_run):
            counter = counts["run"] = Counter()
            for moment in range(options.moments):
                number, after = generator.choice(SIGNALS), generator.uniform(0, 25)
                found = disturbed_run(data, folder / f"runs-{moment // 2}", number, after)
                _note(counter, "run", number, after, found)
            _show("run", counter)
    return int(any(counter[each] for counter in counts.values() for each in COUNTS))


def _disturb_stages(
    moments: int,
    wanted: list[str],
    generator: random.Random,
    data: Path,
    output: Path,
    counts: dict[str, Counter[str]],
) -> None:
    """Disturb each step of an evaluation."""
    commands = recorded_steps(data, output)
    database = output / "mlflow.db"
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    os.environ["EVASION_ARTIFACT_ROOT"] = str(output / "mlartifacts")
    with tracking.pipeline_run("chaos", {}) as parent, process.ProcessLauncher(os.environ) as launcher:
        os.environ["MLFLOW_RUN_ID"] = parent
        for name in [name for name in commands if not wanted or name in wanted]:
            stage = Stage(commands[name], database)
            _, first = stage.clean(launcher, parent)
            duration, second = stage.clean(launcher, parent)
            # What differs without a signal cannot be compared.
            stage.expected = [one if one == other else "" for one, other in zip(first, second, strict=True)]
            print(f"{name}: {duration:.1f} s without a signal", file=sys.stderr, flush=True)
            counter = counts[name] = Counter()
            for _ in range(moments):
                number, after = generator.choice(SIGNALS), generator.uniform(0, 1.1 * duration)
                _note(counter, name, number, after, stage.disturbed(launcher, number, after))
            _show(name, counter)


def _show(name: str, counter: Counter[str]) -> None:
    print(f"{name:<28}{counter['moments']:>8}" + "".join(f"{counter[each]:>17}" for each in COUNTS), flush=True)


def _note(counter: Counter[str], name: str, number: signal.Signals, after: float, found: list[str]) -> None:
    counter.update(["moments", *sorted(set(found))])
    if found:
        print(f"{name}: {number.name} after {after:.2f} s: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
