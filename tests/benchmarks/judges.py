"""Robust accuracy that `auto_attack` leaves, beside that of an independent adaptive attack (`adaptive_attack.py`).

    make judges JUDGES="--training pgd --seed 3 --defense median --eps 0.3"

Both attack the same le_nets, trained as `make demo` and `make robustness` train them, and the same MNIST digits, 20 of
each class. `auto_attack` runs as its stage, aware of the one defense; an image is robust if it is right without an
attack, with the same defense, and under each attacker. Both are judged in 8 bits: a random defense by one draw an
image, the same for both, and by the mean over 100 draws, beside which their standard deviation is printed.

All cells take many hours. Models and results are kept in build/judges: a cell that is in results.jsonl is not measured
again, so an interrupted run goes on where it was; after a change of an attack, remove that file. Exits 1 if an attacked
image is farther from its original than eps.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from against_art import load, trained
from auto_attack import BATCH_SIZE, DEFENSES, GIVEN

from evasion.components.auto_attack import budgets
from evasion.components.auto_attack import task as auto_attack
from evasion.components.common.data import writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.pixels import to_float
from evasion.components.common.defenses.known import defenses_of
from evasion.components.common.models import artifact as model_artifact
from evasion.pipelines import mnist

FOLDER = Path("build/judges")
PGD = {"apply_defense": True, "eps": 0.3, "eps_step": 0.1, "max_iter": 7}
TRAININGS: dict[str, dict[str, Any]] = {"plain": {}, "pgd": PGD}
STAGES = {
    "none": "",
    "median": "spatial_smoothing",
    "jpeg": "jpeg_compression",
    "noise": "gaussian_augmentation",
}
ROW = ("training", "seed", "defense", "eps")
TITLES = {"plain": "plain", "pgd": "against PGD", "jpeg": "JPEG"}
LARGEST_EPS = 0.3  # images that withstand it count with --fast
SEED, JUDGED = 1, 100  # of both attacks; draws of a random defense


@dataclasses.dataclass
class Digits:
    """The images: their dataset, and what it contains."""

    path: Path
    pixels: np.ndarray
    labels: np.ndarray
    names: list[str]


def chosen(source: Path, path: Path, images: int, without: frozenset[int] = frozenset()) -> Digits:
    """Write a dataset of the first images of each class, all but some, and return it."""
    with Dataset(source) as data:
        rows = list(data.samples())
        header = data.header
    classes = len(header.class_names)
    taken = [row for label in range(classes) for row in [r for r in rows if r.label == label][: images // classes]]
    taken = [row for place, row in enumerate(taken) if place not in without]
    labels = np.array([row.label for row in taken], dtype=np.int64)
    counts = tuple(np.bincount(labels, minlength=classes).tolist())
    writer.write(path, dataclasses.replace(header, counts=counts), iter(taken))
    names = [f"{header.class_names[row.label]}/{row.stem}" for row in taken]
    return Digits(path, np.stack([row.pixels for row in taken]), labels, names)


class Judge:
    """A model behind a defense, which says what is right."""

    def __init__(self, folder: Path, defense: str) -> None:
        import keras

        self.model = model_artifact.load(folder)
        self.logits = keras.Model(self.model.input, self.model.get_layer("logits").output)
        self.known = json.dumps({STAGES[defense]: DEFENSES[STAGES[defense]]}) if defense != "none" else ""
        self.transformation = defenses_of(self.known)[0].transformation if self.known else None
        self.random = self.transformation is not None and self.transformation.random
        self.seeds = range(JUDGED if self.random else 1)

    def right(self, pixels: np.ndarray, digits: Digits) -> np.ndarray:
        """Return which images are right, shape (draws, images)."""
        return np.stack([self._predicted(pixels, digits.names, seed) == digits.labels for seed in self.seeds])

    def _predicted(self, pixels: np.ndarray, names: list[str], seed: int) -> np.ndarray:
        if self.transformation is not None:
            of = self.transformation.of
            pixels = np.stack([of(image, seed, name) for image, name in zip(pixels, names, strict=True)])
        outputs: np.ndarray = self.model(to_float(pixels), training=False).numpy()
        return outputs.argmax(axis=1)


def by_stage(folder: Path, digits: Digits, model: Path, judge: Judge, eps: float, cell: dict[str, Any]) -> Any:
    """Return the images of each attacker of the stage `auto_attack`, as they are saved."""
    output = folder / "attacked.tar"
    auto_attack.auto_attack(
        dataset=digits.path,
        model=model,
        adversarial=output,
        defenses=judge.known,
        batch_size=BATCH_SIZE,
        eps=eps,
        norm="inf",
        budget=cell["attack"],
        members=cell["members"],
        eot_samples=8,
        seed=SEED,
        **GIVEN | {"num_random_init": cell.get("num_random_init", 0)},
    )
    for attacker in Dataset.all_in(output):
        with attacker as saved:
            yield np.stack([sample.pixels for sample in saved.samples()])


def adaptively(digits: Digits, judge: Judge, eps: float, starts: int) -> np.ndarray:
    """Return the images of the adaptive attack."""
    from adaptive_attack import AdaptiveAttack

    defense = judge.transformation.apply if judge.transformation else None
    attack = AdaptiveAttack(judge.logits, defense, random=judge.random, eps=eps, starts=starts, seed=SEED)
    return attack.generate(digits.pixels, digits.labels)


def measured(folder: Path, model: Path, judge: Judge, cell: dict[str, Any], spared: list[int]) -> dict[str, Any]:
    """Attack the images of a cell but those that are spared; return what is right."""
    testing = packed("testing")
    digits = chosen(testing, folder / "digits.tar", cell["images"])
    clean = judge.right(digits.pixels, digits)
    # Columns of the attackers; those of spared images stay as they are without an attack.
    robust = aware = clean
    started = time.perf_counter()
    if len(spared) < len(digits.labels):
        attacked = chosen(testing, folder / "attacked-digits.tar", cell["images"], frozenset(spared))
        left = np.setdiff1d(np.arange(len(digits.labels)), spared)
        if cell["attack"] == "adaptive":
            by_attacker = iter([adaptively(attacked, judge, cell["eps"], cell["starts"])])
        else:
            by_attacker = by_stage(folder, attacked, model, judge, cell["eps"], cell)
        for images in by_attacker:
            farthest = np.abs(images.astype(int) - attacked.pixels).max()
            if farthest > 255 * cell["eps"] + 1e-6:
                sys.exit(f"{cell}: a pixel changed by {farthest} levels")
            aware = clean.copy()
            aware[:, left] &= judge.right(images, attacked)
            robust = robust & aware
    return {
        "clean": round(100 * clean[0].mean(), 2),
        "robust": round(100 * robust[0].mean(), 2),
        "aware": round(100 * aware[0].mean(), 2),
        "mean": round(100 * robust.mean(), 2),
        "deviation": round(100 * robust.mean(axis=1).std(), 2),  # from draw to draw
        "seconds": round(time.perf_counter() - started, 1),
        "withstood": np.flatnonzero(robust.all(axis=0)).tolist(),
    }


class Results:
    """What was measured, a JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        self.rows = [row for row in rows if "deviation" in row]  # earlier versions of this script did not measure it

    def of(self, cell: dict[str, Any]) -> dict[str, Any] | None:
        """Return the row of a cell."""
        starts = "num_random_init"
        same = (row for row in self.rows if cell.items() <= row.items() and row.get(starts) == cell.get(starts))
        return next(same, None)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row to the file."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def cells(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield what the attacks of a row have in common, and each of them; the largest eps comes first."""
    for training in options.training:
        for seed in options.seed:
            for defense in options.defense:
                for eps in sorted(options.eps, reverse=True):
                    row = {"training": training, "seed": seed, "defense": defense, "eps": eps}
                    row["images"] = options.images
                    given = {"members": options.members}
                    if options.num_random_init:
                        given["num_random_init"] = options.num_random_init
                    attacks: list[dict[str, Any]] = [{"attack": budget} | given for budget in options.budget]
                    if options.starts:
                        attacks.append({"attack": "adaptive", "starts": options.starts})
                    yield row, attacks


def packed(split: str) -> Path:
    """Return one half of the digits, packed unless it is there."""
    mnist.write(FOLDER / "mnist")
    return FOLDER / split if (FOLDER / split).exists() else load(FOLDER, split, split)


def model_of(training: str, seed: int) -> Path:
    """Return the folder of a model, trained unless it is there."""
    folder = FOLDER / training / f"model-{seed}"
    if not (folder / model_artifact.CARD).exists():
        # In a process of its own: it makes TensorFlow's operations deterministic, which attacks of users' are not.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(trained, folder.parent, packed("training"), seed, **TRAININGS[training]).result()
    return folder


def shown(row: dict[str, Any], measurements: list[dict[str, Any]]) -> str:
    """Return the line of a row."""
    parts = [
        f"{row['training']:5} {row['seed']} {row['defense']:6} clean {measurements[0]['clean']:5.1f} eps {row['eps']:g}"
    ]
    for each in measurements:
        mean = f" ({each['mean']:.1f} ± {each['deviation']:.1f})" if row["defense"] == "noise" else ""
        parts.append(f"{each['attack']} {each['robust']:.1f}{mean} in {each['seconds']:.0f} s")
    return "  ".join(parts)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the tables of docs/judges.md: without a defense, and behind one."""
    rows = sorted(rows, key=lambda row: row.get("starts", 0))  # so that the most starts count
    rows = [row for row in rows if "num_random_init" not in row]
    by_cell = {(*(row[name] for name in ROW), row["attack"]): row for row in rows}
    lines = []
    for defenses in (["none"], [*STAGES][1:]):
        names = [*ROW[:3], "clean", "eps", "`light`", "`standard`", "adaptive"]
        table = [names, ["---"] * len(names)]
        before: tuple[Any, ...] = ()
        for key in itertools.product(TRAININGS, (1, 2, 3), defenses, (0.1, 0.2, 0.3)):
            numbers = [by_cell.get((*key, attack)) for attack in ("light", "standard", "adaptive")]
            if not any(numbers):
                continue
            clean = next(f"{row['clean']:.1f}" for row in numbers if row)
            training, seed, defense, eps = key
            first = [TITLES[training], str(seed), TITLES.get(defense, defense), clean]
            table.append([*(first if key[:3] != before else [""] * 4), f"{eps:g}", *map(_number, numbers)])
            before = key[:3]
        if defenses == ["none"]:
            table = [row[:2] + row[3:] for row in table]
        lines += [f"| {' | '.join(row)} |".replace("|  ", "| ") for row in table] + [""]
    return "\n".join(lines)


def _number(row: dict[str, Any] | None) -> str:
    """Return the text of an attack's number; in brackets the mean over draws."""
    if row is None:
        return "–"
    return f"{row['robust']:.1f}" + (f" ({row['mean']:.1f})" if row["defense"] == "noise" else "")


def listed(kind: Callable[[str], Any], allowed: Any = None) -> Callable[[str], list[Any]]:
    """Return the type of an option with several values, separated by commas."""

    def values(text: str) -> list[Any]:
        parts = [kind(part) for part in text.split(",") if part]
        if allowed is not None and not set(parts) <= set(allowed):
            raise argparse.ArgumentTypeError(f"{text!r} is not of {', '.join(map(str, allowed))}")
        return parts

    return values


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=listed(str, TRAININGS), default=[*TRAININGS])
    parser.add_argument("--seed", type=listed(int), default=[1, 2, 3])
    parser.add_argument("--defense", type=listed(str, STAGES), default=[*STAGES])
    parser.add_argument("--eps", type=listed(float), default=[0.1, 0.2, 0.3])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--starts", type=int, default=1, help="of the adaptive attack; 0 leaves it out")
    parser.add_argument("--budget", type=listed(str, budgets.BUDGETS), default=["standard"], help="'' for none")
    parser.add_argument("--num-random-init", type=int, default=0, help="of auto_attack; 0 for that of the budget")
    parser.add_argument("--members", default=",".join(budgets.MEMBERS), help="of auto_attack")
    parser.add_argument(
        "--fast",
        action="store_true",
        help=f"of PGD training, spare images that withstood the attack at {LARGEST_EPS}, behind noise in all draws",
    )
    parser.add_argument("--table", action="store_true", help="measure nothing, print all results in Markdown")
    return parser.parse_args()


def main() -> None:
    """Measure the cells that are missing, and print all."""
    options = parsed()
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = Results(FOLDER / "results.jsonl")
    if options.table:
        print(markdown(results.rows))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "EVASION_ARTIFACT_ROOT": f"{folder}/artifacts",
        }
        for row, attacks in cells(options):
            measurements = []
            for attack in attacks:
                cell = row | attack
                if (known := results.of(cell)) is None:
                    model = model_of(row["training"], row["seed"])
                    spared: list[int] = []
                    if options.fast and row["training"] == "pgd" and row["eps"] < LARGEST_EPS:
                        spared = (results.of(cell | {"eps": LARGEST_EPS}) or {}).get("withstood", [])
                    judge = Judge(model, row["defense"])
                    known = cell | {"spared": len(spared)}
                    known |= measured(folder, model, judge, cell, spared)
                    results.add(known)
                measurements.append(known)
            if measurements:
                print(shown(row, measurements), flush=True)


if __name__ == "__main__":
    main()
