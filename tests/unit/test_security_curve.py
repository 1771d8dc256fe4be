"""The security curve: the same numbers as the stages, at the cost of one gradient."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from evasion.components.common.data import sampling, writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import Header, Sample
from evasion.components.common.models import classifier
from evasion.components.fgm import task as fgm_task
from evasion.components.gaussian_augmentation import task as gaussian
from evasion.components.infer import task as infer_task
from evasion.components.jpeg_compression import task as jpeg
from evasion.components.report import task as report_task
from evasion.components.security_curve import attackers, lines, measure, smoothness, task

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
def measured(store, digits_tar, le_net_artifact, tmp_path_factory):
    """The folder of a curve, and the metrics of the step."""
    folder = tmp_path_factory.mktemp("curve") / "curve"
    known = json.dumps({"jpeg_compression": JPEG, "gaussian_augmentation": NOISE})
    metrics = task.security_curve(dataset=digits_tar, model=le_net_artifact, defenses=known, curve=folder, **SETTINGS)
    return folder, metrics


@pytest.fixture(scope="module")
def curve(measured):
    return measured[0]


@pytest.fixture(scope="module")
def content(curve):
    return json.loads((curve / "curve.json").read_text())


def line(content, perturbation, knowledge=None, stage=None, count="correct"):
    (found,) = [
        each
        for each in content["curves"]
        if (each["perturbation"], each["knowledge"], (each["defense"] or {}).get("stage"))
        == (perturbation, knowledge, stage)
    ]
    return {point["eps"]: point[count] for point in found["points"]}


def test_there_is_a_curve_of_everything(content):
    assert [(each["perturbation"], each["knowledge"]) for each in content["curves"] if not each["defense"]] == [
        ("fgm", None),
        ("pgd", None),
        ("worst case", None),
        ("noise", None),
    ]
    for stage in ("jpeg_compression", "gaussian_augmentation"):
        lines = [each for each in content["curves"] if each["defense"] and each["defense"]["stage"] == stage]
        assert [(each["perturbation"], each["knowledge"]) for each in lines] == [
            ("fgm", "oblivious"),
            ("fgm", "defense-aware"),
            ("pgd", "oblivious"),
            ("pgd", "defense-aware"),
            ("worst case", None),
            ("noise", None),
        ]
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
        clean = "clean" + "".join(
            f"_{stage}" for stage in ("jpeg_compression", "gaussian_augmentation") if stage in name
        )
        assert sum(row[clean] == row["label"] == row[name] for row in rows) == found["robust"]
    correct = {name: found["correct"] for name, found in content["controls"].items()}
    for stage, suffix in ((None, ""), ("jpeg_compression", "_jpeg_compression")):
        knowledge = "defense-aware" if stage else None
        assert correct[f"clean{suffix}"] == line(content, "fgm", knowledge, stage)[0.0]
        assert correct[f"saved{suffix}"] == line(content, "fgm", knowledge, stage)[0.1]
        assert correct[f"noise{suffix}"] == line(content, "noise", None, stage)[0.1]
        assert correct[f"pgd{suffix}"] == line(content, "pgd", knowledge, stage)[0.1]
        assert correct[f"pgd{suffix}"] <= correct[f"saved{suffix}"] < correct[f"noise{suffix}"]
    assert content["controls"]["pgd"]["eps_step"] == pytest.approx(0.025)


def test_metrics_of_the_step_are_robust_accuracies(content, measured):
    _, metrics = measured
    assert metrics == {
        f"{'' if name.startswith('clean') else 'robust_'}accuracy_{name}": found["robust"] / 80
        for name, found in content["controls"].items()
    }
    assert {"accuracy_clean", "robust_accuracy_saved", "robust_accuracy_noise_jpeg_compression"} <= metrics.keys()


def test_robust_is_what_is_right_without_the_attack_and_under_it(content, curve):
    """At the size of the controls, whose predictions are there image by image."""
    with (curve / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for stage, suffix in ((None, ""), ("jpeg_compression", "_jpeg_compression")):
        both = sum(row[f"clean{suffix}"] == row["label"] == row[f"saved{suffix}"] for row in rows)
        knowledge = "defense-aware" if stage else None
        assert line(content, "fgm", knowledge, stage, "robust")[0.1] == both
        assert both <= line(content, "fgm", knowledge, stage)[0.1]


def test_pgd_and_the_worst_case_only_fall_and_none_leaves_more_than_it_is_made_of(content):
    for each in content["curves"]:
        robust = [point["robust"] for point in each["points"]]
        assert all(point["robust"] <= point["correct"] for point in each["points"])
        assert max(robust) == robust[0]
        if each["perturbation"] in ("pgd", "worst case"):
            assert robust == sorted(robust, reverse=True)
        stage = (each["defense"] or {}).get("stage")
        if each["perturbation"] in ("pgd", "fgm"):
            worst = line(content, "worst case", None, stage, "robust").values()
            assert all(low <= own for low, own in zip(worst, robust, strict=True))
    assert line(content, "pgd", count="robust")[0.3] < line(content, "fgm", count="robust")[0.3]


def test_the_worst_case_is_of_each_image_and_of_all_smaller_sizes():
    right = [
        np.array([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1]], dtype=bool),
        np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]], dtype=bool),
    ]
    worst = lines.worst_case([lines.robust(each) for each in right])
    assert worst.astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("norm", "sizes"), [("inf", (0.02, 0.1, 0.3)), ("2", (0.5, 1.5, 4.0)), ("1", (5.0, 20.0, 60.0))]
)
def test_pgd_stays_within_each_size_and_starts_from_the_one_before(le_net, digits, norm, sizes):
    x = digits.pixels[:32] / np.float32(255)
    attacker = attackers.Attacker(classifier.Classifier(le_net), norm=norm, max_iter=4, leave_below=1)
    attack = attacker.on(x)
    standing = np.ones(len(x), dtype=bool)
    for size in sizes:
        before = attack.images.copy()
        attack.grow(size, standing)
        distances = np.linalg.norm((attack.images - x).reshape(len(x), -1), math.inf if norm == "inf" else int(norm), 1)
        assert distances.max() <= size * (1 + 1e-5)
        assert attack.images.min() >= 0
        assert attack.images.max() <= 1
        assert np.array_equal(attack.images[~standing], before[~standing])
        standing = attacker.target.outputs(attack.images).argmax(axis=1) == attack.own
    assert standing.sum() < 32


def test_an_image_that_is_fooled_costs_no_more_passes(le_net, digits):
    x = digits.pixels[:32] / np.float32(255)
    attacker = attackers.Attacker(classifier.Classifier(le_net), norm="inf", max_iter=5, leave_below=1)
    seen = []
    one_pass = attacker.loss_pass

    def counted(images, labels):
        seen.append(len(images))
        return one_pass(images, labels)

    attacker.loss_pass = counted
    attack = attacker.on(x)
    attack.grow(0.3, np.ones(len(x), dtype=bool))
    assert len(seen) <= 4  # the first gradient is that of FGM
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 32
    seen.clear()
    attack.grow(0.4, np.zeros(len(x), dtype=bool))
    assert seen == []


def winners_take_all(digits):
    """A network of k winners that take all (Xiao et al. 2020), trained for a moment."""
    import keras

    class Winners(keras.layers.Layer):
        def call(self, values):
            least = keras.ops.top_k(values, values.shape[-1] // 10)[0][:, -1:]
            return keras.ops.where(values >= least, values, 0.0)

    keras.utils.set_random_seed(0)
    images = keras.Input((28, 28, 1))
    values = Winners()(keras.layers.Flatten()(keras.layers.Conv2D(8, 3)(images)))
    network = keras.Model(images, keras.layers.Dense(10, activation="softmax")(values))
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    network.fit(digits.pixels[1000:3000] / np.float32(255), digits.labels[1000:3000], epochs=3, verbose=0)
    return network


def smoothness_of(model, pixels):
    target = classifier.Classifier(model)
    x = pixels / np.float32(255)
    own = target.outputs(x).argmax(axis=1)
    batch = [Sample(0, f"{place}", one) for place, one in enumerate(pixels)]
    labels = np.eye(model.output_shape[-1], dtype=np.float32)[own]
    return own, np.mean(smoothness.Smoothness(target, 1).of(batch, x, labels))


def test_a_trained_model_is_smooth_and_one_whose_winners_take_all_is_not(le_net, digits):
    pixels, labels = digits.pixels[:60], digits.labels[:60]
    _, smooth = smoothness_of(le_net, pixels)
    own, jumping = smoothness_of(winners_take_all(digits), pixels)
    assert (own == labels).mean() > 0.7
    assert smooth > 0.7
    assert jumping < 0.4


def test_a_small_network_whose_pooling_has_ties_in_the_background_is_smooth(digits):
    """At the image itself its gradient tells a third of how the loss changes."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.MaxPooling2D(2), keras.layers.Flatten()]
    network = keras.Sequential([keras.Input((28, 28, 1)), *layers, keras.layers.Dense(10, activation="softmax")])
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    network.fit(digits.pixels[1000:3000].astype(np.float32), digits.labels[1000:3000], epochs=3, verbose=0)
    inputs = keras.Input((28, 28, 1))
    network = keras.Model(inputs, network(keras.layers.Rescaling(255.0)(inputs)))
    assert smoothness_of(network, digits.pixels[:60])[1] > 0.55


def test_a_deep_model_of_photographs_does_not_fail(resnet50, photographs):
    """Although it is not trained."""
    assert smoothness_of(resnet50, photographs)[1] > 0.55


def test_the_smoothness_is_measured_of_the_images_of_the_lowest_ranks(curve):
    with (curve / "predictions.csv").open(newline="") as file:
        found = [float(row["smoothness"]) for row in csv.DictReader(file) if row["smoothness"]]
    assert len(found) == 80
    assert np.mean(found) > 0.7
    names = [f"{place}" for place in range(500)]
    sampled = smoothness.Sampled()
    taken = [names[start + place] for start in range(0, 500, 50) for place in sampled.places(names[start : start + 50])]
    assert set(sorted(names, key=sampling.rank)[:100]) <= set(taken)
    assert len(taken) < 300


def test_a_dataset_without_images_has_a_curve_without_points(store, le_net_artifact, tmp_path):
    header = Header(
        name="load_dataset",
        class_names=tuple("0123456789"),
        counts=(0,) * 10,
        image_shape=(28, 28, 1),
        split="testing",
        provenance=({"stage": "load_dataset", "kind": "load", "parameters": {}, "seed": None},),
    )
    writer.write(tmp_path / "dataset", header, [])
    target = {"dataset": tmp_path / "dataset", "model": le_net_artifact}
    metrics = task.security_curve(defenses="", curve=tmp_path / "curve", **target, **SETTINGS)
    assert metrics == {}
    infer_task.infer(others=[], evaluation=tmp_path / "evaluation", batch_size=32, seed=1, **target)
    report_task.report(
        evaluation=tmp_path / "evaluation",
        evaluation_shards=[],
        curve=tmp_path / "curve",
        curve_shards=[],
        html=tmp_path / "report.html",
        summary=tmp_path / "report.json",
        clean_accuracy_floor=0.5,
    )
    drawn = json.loads((tmp_path / "report.json").read_text())["curve"]
    assert (drawn["series"], drawn["controls"], drawn["smoothness"]) == ([], {}, None)


def test_one_gradient_a_batch_for_all_sizes_of_fgm(store, digits_tar, le_net_artifact, tmp_path, monkeypatch):
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
        r"eps_values must be at most 1,000 positive numbers separated by commas, at most 1 each. Received: .*zero",
    ),
    ({"eps_values": "0.1,,0.2"}, r"eps_values must be at most 1,000 positive numbers separated by commas"),
    ({"eps_values": "0.1,nan"}, r"eps_values must be at most 1,000 positive numbers separated by commas"),
    ({"eps_values": "2"}, r"at most 1 each. Received: eps_values='2'"),
    (
        {"eps_values": "0", "norm": "2"},
        r"eps_values must be at most 1,000 positive numbers separated by commas, at most 3,548 each. Received",
    ),
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
