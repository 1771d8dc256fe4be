"""Robust accuracy over the size of FGM: one gradient an image for all sizes, since an FGM step is linear in eps."""

import contextlib
import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.validate import ParameterError

CURVE = "curve.json"
PREDICTIONS = "predictions.csv"
SCHEMA_VERSION = 1
# In 8-bit levels, so that rounding loses nothing: about half as much again from point to point.
LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)
STACKED_BYTES = 16 << 20  # of images that the model is given at once
PGD_STEPS = 4  # so many PGD steps bridge eps


def check(
    *,
    batch_size: int,
    eps: float,
    norm: str,
    eps_values: str,
    pgd_max_iter: int,
    eot_samples: int,
    seed: int,
    **_: object,
) -> None:
    """Hold the parameters to their rules."""
    validate.positive_integer("batch_size", batch_size)
    validate.attack_size(norm, eps, eps)
    _sizes(eps_values, norm)
    validate.at_least("pgd_max_iter", pgd_max_iter, 0)
    validate.positive_integer("eot_samples", eot_samples)
    validate.seed(seed)


def _sizes(eps_values: str, norm: str) -> list[float]:
    """Read sizes of the attack, separated by commas."""
    rule = "eps_values must be positive numbers separated by commas" + (", at most 1" if norm == "inf" else "")
    try:
        sizes = [float(word) for word in eps_values.split(",")] if eps_values.strip() else []
    except ValueError:
        sizes = [math.nan]
    if not all(0 < size <= (1 if norm == "inf" else 1e9) for size in sizes):
        raise ParameterError(f"{rule}. Received: eps_values={eps_values!r}", "eps_values")
    return sizes


def security_curve(
    *,
    dataset: Path,
    model: Path,
    defenses: str,
    curve: Path,
    batch_size: int,
    eps: float,
    norm: str,
    eps_values: str,
    pgd_max_iter: int,
    eot_samples: int,
    seed: int,
) -> dict[str, float]:
    """Measure the curve; the parameters are those of the step of this name.

    Returns:
        Accuracies of the controls at `eps`.
    """
    parameters = {
        "batch_size": batch_size,
        "eps": eps,
        "norm": norm,
        "eps_values": eps_values,
        "pgd_max_iter": pgd_max_iter,
        "eot_samples": eot_samples,
    }
    check(**parameters, seed=seed)  # type: ignore[arg-type]

    from evasion.components.common import seeding, tracking, versions
    from evasion.components.common.data.dataset import Dataset
    from evasion.components.common.defenses.known import defenses_of
    from evasion.components.common.files import replacing
    from evasion.components.common.models.artifact import Card

    used = {**parameters, "seed": seeding.resolve(seed)}
    known = defenses_of(defenses)
    logged = {**used, "defenses": defenses}
    with tracking.stage("security_curve", logged) as run, Dataset(dataset) as data, replacing(curve) as folder:
        card = Card.read(model)
        card.indices_of(data.header.class_names, data.header.image_shape)  # refused before TensorFlow is loaded
        folder.mkdir(parents=True)
        measured = _measure(data, model, card, known, folder / PREDICTIONS, used)
        content = {
            "schema_version": SCHEMA_VERSION,
            "attack": "fgm",
            **used,
            "chance": 1 / sum(count > 0 for count in data.header.counts),
            "images": len(data),
            "dataset": dataclasses.asdict(data.header) | {"sha256": data.sha256},
            "model": dataclasses.asdict(card),
            "versions": versions.recorded(model=True),
            **measured,
        }
        (folder / CURVE).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
        metrics = {f"accuracy_{name}": found["correct"] / len(data) for name, found in measured["controls"].items()}
        run.tag({"dataset_sha256": data.sha256})
        run.log_metrics(metrics)
        run.log_file(folder / CURVE, CURVE)
    return metrics


def _grid(used: Mapping[str, Any], image_shape: tuple[int, int, int]) -> list[float]:
    """Return the sizes of the curve, rising, `eps` itself among them."""
    # A change by one level of every pixel, measured in the norm.
    unit = {"inf": 1.0, "2": math.sqrt(math.prod(image_shape)), "1": float(math.prod(image_shape))}[used["norm"]]
    sizes = _sizes(used["eps_values"], used["norm"]) or [level / 255 * unit for level in LEVELS]
    return sorted({used["eps"], *(size for size in sizes if not math.isclose(size, used["eps"], rel_tol=1e-6))})


@dataclasses.dataclass
class _Line:
    """One curve: what perturbs the images, what the attacker knows, and what stands before the model."""

    perturbation: str
    knowledge: str | None
    defense: Any
    target: Any  # whose gradient is followed; None for noise
    method: Any
    correct: list[int]

    def describe(self, sizes: list[float]) -> dict[str, Any]:
        points = [{"eps": size, "correct": count} for size, count in zip([0.0, *sizes], self.correct, strict=True)]
        return {
            "perturbation": self.perturbation,
            "knowledge": self.knowledge,
            "defense": self.defense.describe() if self.defense else None,
            "points": points,
        }


def _measure(
    data: Any, model: Path, card: Any, defenses: list[Any], predictions: Path, used: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the curves and controls, and write the controls' predictions."""
    import numpy as np

    from evasion.components.common.attacks import runner
    from evasion.components.common.data.pixels import to_float, to_pixels
    from evasion.components.common.defenses.transformations import generator
    from evasion.components.common.models import classifier
    from evasion.components.common.progress import track
    from evasion.components.fgm.task import fast_gradient_method
    from evasion.components.pgd.task import projected_gradient_descent

    bare = classifier.load(model)
    norm, batch_size, seed = used["norm"], used["batch_size"], used["seed"]
    sizes = _grid(used, data.header.image_shape)

    def line(perturbation: str, knowledge: str | None, defense: Any, known: Any) -> _Line:
        target = runner.aimed(bare, known, eot_samples=used["eot_samples"], seed=seed)
        method = fast_gradient_method(
            target.art, norm=norm, eps=used["eps"], eps_step=used["eps"], minimal=False, batch_size=batch_size
        )
        return _Line(perturbation, knowledge, defense, target, method, [0] * (len(sizes) + 1))

    lines = [line("fgm", None, None, None), line("noise", None, None, None)]
    for defense in defenses:
        lines.append(line("fgm", runner.OBLIVIOUS, defense, None))
        lines.append(line("fgm", runner.AWARE, defense, defense))
    pgd = projected_gradient_descent(
        bare.art,
        norm=norm,
        eps=used["eps"],
        eps_step=used["eps"] / PGD_STEPS,
        max_iter=max(1, used["pgd_max_iter"]),
        num_random_init=0,
        batch_size=batch_size,
    )
    controls = {"computed": 0, "saved": 0, "noise": 0} | ({"pgd": 0} if used["pgd_max_iter"] else {})
    places = card.indices_of(data.header.class_names, data.header.image_shape)
    identity = np.eye(len(card.class_names), dtype=np.float32)

    def predicted(x: Any) -> Any:
        return bare.outputs(x).argmax(axis=1)

    def saved(x: Any, batch: list[Any], defense: Any) -> Any:
        """Return images as the model meets them: in 8 bits, and through the defense as its stage would draw it."""
        pixels = to_pixels(x)
        if defense:
            made = zip(pixels, batch, strict=True)
            pixels = np.stack([defense.transformation.of(x, seed, sample.source) for x, sample in made])
        return to_float(pixels)

    def met(batch: list[Any], x: Any, before: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the images as the model meets them: by defense, by line and size, and attacked but not saved."""
        directions: dict[int, Any] = {}
        seen: set[int] = set()
        for each in lines:
            key = id(each.target)
            if each.perturbation == "noise":
                direction = np.stack([_noise(generator(seed, sample.source), x.shape[1:], norm) for sample in batch])
            elif key in directions:  # the same attacker meets several defenses
                direction = directions[key]
            else:
                mine = before if each.target is bare else each.target.attacked_outputs(x).argmax(axis=1)
                direction = directions[key] = each.method._compute_perturbation(x, identity[mine], None)
            if id(each.defense) not in seen:
                seen.add(id(each.defense))
                yield id(each.defense), saved(x, batch, each.defense)
            for size in sizes:
                moved = each.method._apply_perturbation(x, direction, size)
                yield (id(each), size), saved(moved, batch, each.defense)
                if each is lines[0] and size == used["eps"]:
                    yield "computed", moved

    with _table(predictions, list(controls)) as write:
        for batch in track(data.batches(batch_size), -(-len(data) // batch_size), "batches"):
            x = to_float(classifier.stack(batch))
            labels = places[[sample.label for sample in batch]]
            before = bare.attacked_outputs(x).argmax(axis=1)
            guesses = _guessed(predicted, met(batch, x, before))
            for each in lines:
                points = [guesses[id(each.defense)], *(guesses[id(each), size] for size in sizes)]
                for point, guess in enumerate(points):
                    each.correct[point] += int((guess == labels).sum())
            found: dict[str, Any] = {
                "computed": guesses["computed"],
                "saved": guesses[id(lines[0]), used["eps"]],
                "noise": guesses[id(lines[1]), used["eps"]],
            }
            if "pgd" in controls:
                found["pgd"] = predicted(saved(pgd.generate(x, y=identity[before]), batch, None))
            for name in controls:
                controls[name] += int((found[name] == labels).sum())
            for place, sample in enumerate(batch):
                guessed = {name: card.class_names[found[name][place]] for name in controls}
                write({"path": sample.source, "label": card.class_names[labels[place]], **guessed})

    described: dict[str, dict[str, Any]] = {name: {"correct": count} for name, count in controls.items()}
    if "pgd" in described:
        described["pgd"] |= {"max_iter": used["pgd_max_iter"], "eps_step": used["eps"] / PGD_STEPS}
    return {"curves": [each.describe(sizes) for each in lines], "controls": described}


def _guessed(predicted: Callable[[Any], Any], batches: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return what `predicted` says of each batch, by its key.

    Several small batches go through the model at once, which keeps its cores busy.
    """
    import numpy as np

    guesses: dict[Any, Any] = {}
    waiting: dict[Any, Any] = {}

    def predict() -> None:
        if waiting:
            ends = np.cumsum([len(batch) for batch in waiting.values()])[:-1]
            parts = np.split(predicted(np.concatenate(list(waiting.values()))), ends)
            guesses.update(zip(waiting, parts, strict=True))
            waiting.clear()

    for key, batch in batches:
        waiting[key] = batch
        if sum(one.nbytes for one in waiting.values()) + batch.nbytes > STACKED_BYTES:
            predict()
    predict()
    return guesses


def _noise(random: Any, shape: tuple[int, ...], norm: str) -> Any:
    """Return noise of size 1: uniform in [-1, 1] for inf, else a random direction of length 1 in the norm."""
    import numpy as np

    if norm == "inf":
        return random.uniform(-1, 1, shape).astype(np.float32)
    direction = random.laplace(size=shape) if norm == "1" else random.standard_normal(shape)
    return (direction / np.linalg.norm(direction.ravel(), int(norm))).astype(np.float32)


@contextlib.contextmanager
def _table(path: Path, controls: list[str]) -> Iterator[Any]:
    """Open the table of the controls' predictions and yield what writes a row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ["path", "label", *controls])
        rows.writeheader()
        yield rows.writerow
