"""Robust accuracies of the stages beside ART's own classes, and what the security curve costs.

    make bench-art

For each seed a le_net is trained on 4,000 MNIST digits and 1,000 others are attacked, once by the stages (8-bit images,
saved and read again) and once by ART as its documentation shows it (its classifier over the model with its softmax,
images in floating point, all at once). ART's accuracy must lie within the 95 % interval of the stages'. Then a curve
of sixteen sizes is timed against sixteen attacks that are each saved and evaluated, in turns. Exits 1 where numbers
disagree or the curve costs a third or more.
"""

import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.console import Console
from rich.table import Table

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.pixels import to_float
from evasion.components.common.models import artifact as model_artifact
from evasion.components.fgm import task as fgm
from evasion.components.infer import task as infer
from evasion.components.load_dataset import task as load_dataset
from evasion.components.pgd import task as pgd
from evasion.components.security_curve import task as security_curve
from evasion.components.spatial_smoothing import task as spatial_smoothing
from evasion.components.train import task as train
from evasion.components.train.component import train as train_step
from evasion.pipelines import mnist

SEEDS = (1, 2, 3)
SIZES = (0.1, 0.2, 0.3)
ROUNDS = 3
BATCH = {"batch_size": 100}
FGM = {"eps_step": 0.1, "minimal": False, "norm": "inf", "eot_samples": 1, **BATCH}
PGD = {"eps_step": 0.02, "max_iter": 20, "num_random_init": 0, "norm": "inf", "eot_samples": 1, **BATCH}
WINDOW = 3


def load(folder: Path, name: str, split: str) -> Path:
    """Pack one half of the digits."""
    load_dataset.load_dataset(
        dataset=folder / split,
        data_dir=str(folder / "mnist" / name),
        model_architecture="le_net",
        split=split,
        skip_unreadable=False,
        load_dataset_from_mlruns=False,
        dataset_run_id="",
        dataset_tar_name="",
        dataset_name="",
        shards=1,
        batch_size=BATCH["batch_size"],
        model=None,
        interpolation="bilinear",
        crop_to_aspect_ratio=False,
        pad_to_aspect_ratio=False,
    )
    return folder / split


def trained(folder: Path, data: Path, seed: int, **changed: Any) -> Path:
    """Train as `make demo` does, with some parameters changed."""
    defaults = {name: spec.default for name, spec in train_step.component_spec.inputs.items()}
    demo = {"epochs": 12.0, "validation_split": 0.1, "register_model": False, "weights": "none", "seed": seed}
    paths = {"dataset": data, "model": folder / f"model-{seed}"}
    train.train(**(defaults | demo | changed | paths))
    return folder / f"model-{seed}"


def evaluated(folder: Path, images: Path, model: Path) -> dict[str, float]:
    """Return the metrics of `infer`."""
    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    output = folder / "evaluation"
    return infer.infer(dataset=images, others=[], model=model, evaluation=output, seed=0, **BATCH)["metrics"]


def attacked(folder: Path, stage: str, data: Path, model: Path, defenses: str = "", **parameters: object) -> Path:
    """Run an attack's stage."""
    run = {"fgm": fgm.fgm, "pgd": pgd.pgd}[stage]
    run(dataset=data, model=model, adversarial=folder / "attacked", defenses=defenses, seed=0, **parameters)
    return folder / "attacked"


def smoothed(data: Path, output: Path) -> Path:
    """Run the stage of the defense."""
    spatial_smoothing.spatial_smoothing(
        dataset=data, others=[], defended=output, window_size=WINDOW, apply_fit=False, apply_predict=True, seed=0
    )
    return output


def by_art(model: Path, data: Path) -> dict[tuple[str, float], float]:
    """Return ART's robust accuracies."""
    import keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
        from art.defences.preprocessor import SpatialSmoothing
        from art.estimators.classification import TensorFlowV2Classifier

    with Dataset(data) as digits:
        rows = list(digits.samples())
    x, labels = to_float(np.stack([row.pixels for row in rows])), np.array([row.label for row in rows])

    def classifier(defences: list | None = None) -> TensorFlowV2Classifier:
        return TensorFlowV2Classifier(
            model=model_artifact.load(model),
            nb_classes=10,
            input_shape=(28, 28, 1),
            loss_object=keras.losses.CategoricalCrossentropy(),
            clip_values=(0.0, 1.0),
            preprocessing_defences=defences,
        )

    def accuracy(target: TensorFlowV2Classifier, images: np.ndarray) -> float:
        return float((target.predict(images).argmax(axis=1) == labels).mean())

    plain, known = classifier(), classifier([SpatialSmoothing(window_size=WINDOW)])
    found = {}
    for eps in SIZES:
        for name, target in (("fgm", plain), ("fgm aware of spatial_smoothing", known)):
            attack = FastGradientMethod(target, norm=np.inf, eps=eps, batch_size=100)
            found[name, eps] = accuracy(target, attack.generate(x))
        iterated = {name: PGD[name] for name in ("eps_step", "max_iter", "num_random_init", "batch_size")}
        attack = ProjectedGradientDescent(plain, norm=np.inf, eps=eps, verbose=False, **iterated)
        found["pgd", eps] = accuracy(plain, attack.generate(x))
    return found


def by_stages(folder: Path, model: Path, data: Path) -> dict[tuple[str, float], dict[str, float]]:
    """Return the stages' metrics for the same attacks."""
    known = json.dumps({"spatial_smoothing": {"window_size": WINDOW}})
    aware = "spatial_smoothing_of_fgm_aware_of_spatial_smoothing/"
    found = {}
    for eps in SIZES:
        both = attacked(folder, "fgm", data, model, known, eps=eps, **FGM)
        found["fgm", eps] = evaluated(folder, both, model)  # those of the oblivious attacker alone
        metrics = evaluated(folder, smoothed(both, folder / "smoothed"), model)
        found["fgm aware of spatial_smoothing", eps] = {
            name.removeprefix(aware): value for name, value in metrics.items() if name.startswith(aware)
        }
        found["pgd", eps] = evaluated(folder, attacked(folder, "pgd", data, model, eps=eps, **PGD), model)
    return found


def cost(folder: Path, model: Path, data: Path) -> float:
    """Return what a curve of sixteen sizes costs, as a share of sixteen single attacks: the median of turns."""
    from evasion.components.security_curve.measure import LEVELS

    sizes = [level / 255 for level in LEVELS]
    ratios = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for eps in sizes:
            evaluated(folder, attacked(folder, "fgm", data, model, eps=eps, **FGM), model)
        between = time.perf_counter()
        shutil.rmtree(folder / "curve", ignore_errors=True)
        security_curve.security_curve(
            dataset=data,
            model=model,
            defenses="",
            curve=folder / "curve",
            eps=sizes[-1],
            norm="inf",
            eps_values=",".join(map(repr, sizes)),
            pgd_max_iter=0,
            eot_samples=1,
            seed=0,
            **BATCH,
        )
        ratios.append((time.perf_counter() - between) / (between - started))
    return statistics.median(ratios)


def main() -> int:
    """Measure, print the table, and say whether anything disagrees."""
    table = Table("seed", "attack", "eps", "stages, %", "ART, %", title="Accuracy under attack, le_net on MNIST digits")
    apart = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "EVASION_ARTIFACT_ROOT": f"{folder}/artifacts",
        }
        mnist.write(folder / "mnist")
        training, testing = load(folder, "training", "training"), load(folder, "testing", "testing")
        for seed in SEEDS:
            model = trained(folder, training, seed)
            clean = evaluated(folder, testing, model)
            table.add_row(str(seed), "none", "", f"{clean['accuracy']:.1%}", "")
            ours, theirs = by_stages(folder, model, testing), by_art(model, testing)
            for (name, eps), found in ours.items():
                accuracy = theirs[name, eps]
                value, low, high = (found[f"accuracy_under_attack{end}"] for end in ("", "_low", "_high"))
                inside = low <= accuracy <= high
                apart += not inside
                shown = f"{value:.1%} [{low:.1%}, {high:.1%}]"
                table.add_row(str(seed), name, f"{eps:g}", shown, f"{accuracy:.1%}{'' if inside else ' apart'}")
        Console(width=110).print(table)
        share = cost(folder, model, testing)
    print(f"A curve of sixteen sizes costs {share:.2f} of sixteen attacks.")
    return int(apart > 0 or not share < 1 / 3 or math.isnan(share))


if __name__ == "__main__":
    sys.exit(main())
