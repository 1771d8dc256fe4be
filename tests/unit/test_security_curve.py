"""The security curve: the same numbers as the stages, at the cost of one gradient."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.models import classifier
from evasion.components.fgm import task as fgm_task
from evasion.components.gaussian_augmentation import task as gaussian
from evasion.components.infer import task as infer_task
from evasion.components.jpeg_compression import task as jpeg
from evasion.components.security_curve import measure, task

SETTINGS = {
    "batch_size": 32,
    "eps": 0.1,
    "norm": "inf",
    "eps_values": "0.05, 0.3",
    "pgd_max_iter": 10,
    "eot_samples": 4,
    "seed": 3,
}
JPEG = {"quality": 40, "channels_first": False}
NOISE = {"perform_data_augmentation": False, "ratio": 1.0, "sigma": 0.2}
FGM = {"batch_size": 32, "eps_step": 0.1, "minimal": False, "eot_samples": 4, "seed": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """MLflow in a folder of this module."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("EVASION_ARTIFACT_ROOT", str(folder / "artifacts"))
        yield folder


@pytest.fixture(scope="module")
def curve(store, digits_tar, le_net_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve") / "curve"
    known = json.dumps({"jpeg_compression": JPEG, "gaussian_augmentation": NOISE})
    task.security_curve(dataset=digits_tar, model=le_net_artifact, defenses=known, curve=folder, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def content(curve):
    return json.loads((curve / "curve.json").read_text())


def line(content, perturbation, knowledge=None, stage=None):
    (found,) = [
        each
        for each in content["curves"]
        if (each["perturbation"], each["knowledge"], (each["defense"] or {}).get("stage"))
        == (perturbation, knowledge, stage)
    ]
    return {point["eps"]: point["correct"] for point in found["points"]}


def test_there_is_a_curve_of_everything(content):
    assert len(content["curves"]) == 6
    for each in content["curves"]:
        assert [point["eps"] for point in each["points"]] == [0.0, 0.05, 0.1, 0.3]
    assert content["chance"] == 0.1
    assert content["images"] == 80


def defend(stage, attacked, out):
    """Run a defense with the seed of the curve, from which it draws what the curve has drawn."""
    run, settings = {
        "jpeg_compression": (jpeg.jpeg_compression, JPEG),
        "gaussian_augmentation": (gaussian.gaussian_augmentation, NOISE),
    }[stage]
    run(
        dataset=attacked,
        others=[],
        defended=out,
        apply_fit=False,
        apply_predict=True,
        seed=SETTINGS["seed"],
        **settings,
    )


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.3])
@pytest.mark.parametrize(
    ("knowledge", "stage"),
    [
        (None, None),
        ("oblivious", "jpeg_compression"),
        ("defense-aware", "jpeg_compression"),
        ("oblivious", "gaussian_augmentation"),
        ("defense-aware", "gaussian_augmentation"),
    ],
)
def test_a_point_is_what_attack_defense_and_inference_give(
    store, content, digits_tar, le_net_artifact, tmp_path, eps, knowledge, stage
):
    """To the last image, with the noise that the defense draws and that which the attacker averages over."""
    settings = {"jpeg_compression": JPEG, "gaussian_augmentation": NOISE}
    known = json.dumps({stage: settings[stage]}) if knowledge == "defense-aware" else ""
    fgm_task.fgm(
        dataset=digits_tar,
        model=le_net_artifact,
        adversarial=tmp_path / "all",
        defenses=known,
        norm="inf",
        eps=eps,
        **FGM,
    )
    images = tmp_path / "attacked"
    with Dataset(tmp_path / "all", f"fgm_aware_of_{stage}" if known else "fgm") as made:
        made.copy_to(images)
    if stage:
        defend(stage, images, tmp_path / "defended")
        images = tmp_path / "defended"
    found = infer_task.infer(
        dataset=images, others=[], model=le_net_artifact, evaluation=tmp_path / "evaluation", batch_size=32, seed=1
    )
    assert line(content, "fgm", knowledge, stage)[eps] == found["metrics"]["correct"]


def test_without_attack_it_is_the_clean_accuracy(content, digits_tar, le_net_artifact, tmp_path, store):
    found = infer_task.infer(
        dataset=digits_tar, others=[], model=le_net_artifact, evaluation=tmp_path / "evaluation", batch_size=32, seed=1
    )
    for each in content["curves"]:
        if each["defense"] is None:
            assert each["points"][0]["correct"] == found["metrics"]["correct"]


def test_controls_are_counted_and_listed(content, curve):
    with (curve / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80
    for name, found in content["controls"].items():
        assert sum(row[name] == row["label"] for row in rows) == found["correct"]
    assert content["controls"]["saved"]["correct"] == line(content, "fgm")[0.1]
    assert content["controls"]["noise"]["correct"] == line(content, "noise")[0.1]
    assert content["controls"]["pgd"]["correct"] <= content["controls"]["saved"]["correct"]
    assert content["controls"]["noise"]["correct"] > content["controls"]["saved"]["correct"]


def test_one_gradient_a_batch_for_all_sizes(store, digits_tar, le_net_artifact, tmp_path, monkeypatch):
    calls = {"both": 0, "gradient": 0, "forward": 0}

    def counted(name, original):
        def call(*arguments):
            calls[name] += 1
            return original(*arguments)

        return call

    made = classifier.load

    def load(folder):
        target = made(folder)
        for name in calls:
            setattr(target, name, counted(name, getattr(target, name)))
        return target

    monkeypatch.setattr(classifier, "load", load)
    task.security_curve(
        dataset=digits_tar,
        model=le_net_artifact,
        defenses="",
        curve=tmp_path / "curve",
        **SETTINGS | {"eps_values": "", "pgd_max_iter": 0, "batch_size": 40},
    )
    assert calls["both"] == 2  # 80 images in two batches
    assert calls["gradient"] == 0
    # Small images go through the model together: at 0, and of FGM and noise sixteen sizes, eps, and one unrounded.
    assert calls["forward"] == 2


@pytest.mark.parametrize(("norm", "largest"), [("inf", 1.0), ("2", 28.0), ("1", 784.0)])
def test_the_usual_sizes_move_every_pixel_by_up_to_all_levels(norm, largest):
    sizes = measure.grid(norm, largest / 10, [], (28, 28, 1))
    assert len(sizes) == 17
    assert list(sizes) == sorted(sizes)
    assert sizes[0] == pytest.approx(largest / 255)
    assert sizes[-1] == pytest.approx(largest)


@pytest.mark.parametrize("norm", ["inf", "1", "2"])
def test_noise_has_size_one(norm):
    drawn = [measure._noise(np.random.default_rng(seed), (28, 28, 1), norm) for seed in range(5)]
    for noise in drawn:
        size = np.linalg.norm(noise.ravel(), math.inf if norm == "inf" else int(norm))
        assert size == pytest.approx(1, rel=0.01)
        assert size <= 1 + 1e-5
    assert not np.array_equal(drawn[0], drawn[1])


BAD = [
    ({"eps": 0.0}, r"eps must be in \(0, 1\]. Received: eps=0.0"),
    (
        {"eps_values": "0.1,zero"},
        r"eps_values must be positive numbers separated by commas, at most 1. Received: .*zero",
    ),
    ({"eps_values": "0.1,,0.2"}, r"eps_values must be positive numbers separated by commas"),
    ({"eps_values": "0.1,nan"}, r"eps_values must be positive numbers separated by commas"),
    ({"eps_values": "2"}, r"at most 1. Received: eps_values='2'"),
    ({"eps_values": "0", "norm": "2"}, r"eps_values must be positive numbers separated by commas. Received"),
    ({"pgd_max_iter": -1}, r"pgd_max_iter must be an integer of at least 0"),
    ({"eot_samples": 0}, r"eot_samples must be a positive integer"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[str(changed) for changed, _ in BAD])
def test_bad_parameters_are_refused_before_anything_is_read(changed, message):
    nowhere = Path("/nowhere")
    with pytest.raises(ValueError, match=message):
        task.security_curve(dataset=nowhere, model=nowhere, defenses="", curve=nowhere, **SETTINGS | changed)


@pytest.mark.parametrize(
    ("defenses", "message"),
    [
        ("{", "defenses must be a JSON object of settings by defense"),
        ('{"fgm": {}}', "defenses must name steps that have a `transformation`. Received: defenses='fgm'"),
        ('{"jpeg_compression": {"quality": 40}}', "defenses: jpeg_compression needs channels_first"),
        ('{"jpeg_compression": {"quality": 0, "channels_first": false}}', r"quality must be an integer in \[1, 100\]"),
    ],
)
def test_defenses_that_cannot_be_made_are_refused_before_anything_is_read(tmp_path, defenses, message):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ValueError, match=message):
        task.security_curve(dataset=nowhere, model=nowhere, defenses=defenses, curve=nowhere, **SETTINGS)
    assert not list(tmp_path.iterdir())
