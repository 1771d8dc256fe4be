"""Evaluation: every number against an independent computation on the images that were saved."""

import contextlib
import csv
import hashlib
import io
import json
import math
import subprocess
import sys
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from evasion.components.common.data import sampling, writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import DatasetError, Header, Sample
from evasion.components.common.models import artifact as model_artifact
from evasion.components.common.models.artifact import ModelError
from evasion.components.common.results.shares import share
from evasion.components.fgm import task as fgm_task
from evasion.components.infer import task
from evasion.components.infer.confusion import readable
from evasion.components.jpeg_compression import task as jpeg_task
from evasion.components.pgd import task as pgd_task

SETTINGS = {"others": [], "batch_size": 32, "seed": 0}
# Strong enough to fool the small LeNet often, weak enough not to fool it always.
ATTACK = {
    "defenses": "",
    "eot_samples": 4,
    "batch_size": 32,
    "eps": 0.05,
    "eps_step": 0.1,
    "minimal": False,
    "norm": "inf",
    "seed": 0,
}
COMPRESSION = {"quality": 50, "channels_first": False, "apply_fit": False, "apply_predict": True, "seed": 0}


def refuse(constant):
    raise AssertionError(f"evaluation.json holds {constant}")


@pytest.fixture
def evaluate(mlflow_store, tmp_path):
    """Run `infer` on one dataset; return its numbers, the rows of predictions, their folder, and what it returned."""

    def run(data, model, out="evaluation", **changed):
        returned = task.infer(dataset=data, model=model, evaluation=tmp_path / out, **SETTINGS | changed)
        (name,) = json.loads((tmp_path / out / "evaluations.json").read_text())
        assert sorted(one.name for one in (tmp_path / out).iterdir()) == ["evaluations.json", name]
        folder = tmp_path / out / name
        found = json.loads((folder / "evaluation.json").read_text(), parse_constant=refuse)
        assert returned["metrics"] == pytest.approx(found["metrics"])
        with (folder / "predictions.csv").open(newline="") as file:
            return found, list(csv.DictReader(file)), folder, returned

    return run


@contextlib.contextmanager
def tracked_in(folder, empty_mlflow):
    """MLflow in a folder, for fixtures of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("EVASION_ARTIFACT_ROOT", str(folder / "artifacts"))
        (folder / "mlflow.db").write_bytes(empty_mlflow.read_bytes())
        yield


@pytest.fixture(scope="module")
def attacked(le_net_artifact, digits_tar, tmp_path_factory, empty_mlflow):
    """The packed digits after FGM on the LeNet."""
    folder = tmp_path_factory.mktemp("attacked")
    with tracked_in(folder, empty_mlflow):
        fgm_task.fgm(dataset=digits_tar, model=le_net_artifact, adversarial=folder / "fgm.tar", **ATTACK)
    return folder / "fgm.tar"


def unpacked(tar):
    """Every image of a dataset by its path, read by nothing of this package."""
    with tarfile.open(tar) as archive:
        return {
            member.name.partition("/")[2]: np.asarray(Image.open(io.BytesIO(archive.extractfile(member).read())))
            for member in archive
            if member.name.endswith(".png")
        }


def predicted_by_keras(tar, model):
    """Paths, true names and probabilities, from Keras's own `predict` over the saved files."""
    images = unpacked(tar)
    x = np.stack(list(images.values())).astype(np.float32).reshape(len(images), 28, 28, 1) / 255
    network = keras.saving.load_model(model / "model.keras", compile=False)
    probabilities = network.predict(x, verbose=0).astype(float)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # sklearn warns of float32's rounding
    return list(images), [path.partition("/")[0] for path in images], probabilities


def wilson(successes, trials, z=1.959963984540054):
    """Wilson 1927, as it is written in the books."""
    share, spread = successes / trials, 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / spread
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / spread
    return centre - half, centre + half


@pytest.mark.parametrize("which", ["clean", "attacked"])
def test_metrics_are_those_of_sklearn_on_the_saved_images(evaluate, digits_tar, attacked, le_net_artifact, which):
    from sklearn import metrics

    tar = {"clean": digits_tar, "attacked": attacked}[which]
    found, rows, _, _ = evaluate(tar, le_net_artifact, batch_size=7)
    paths, names, probabilities = predicted_by_keras(tar, le_net_artifact)
    labels, guesses = np.array([int(name) for name in names]), probabilities.argmax(axis=1)
    truth = np.eye(10, dtype=int)[labels]
    above = probabilities > 0.5
    numbers = found["metrics"]
    assert numbers["images"] == 80
    assert 80 % 7  # so that a last partial batch was counted
    assert numbers["correct"] == (labels == guesses).sum()
    name, other = (
        ("accuracy_under_attack", "accuracy") if which == "attacked" else ("accuracy", "accuracy_under_attack")
    )
    assert other not in numbers
    assert numbers[name] == pytest.approx(metrics.accuracy_score(labels, guesses))
    assert (numbers[f"{name}_low"], numbers[f"{name}_high"]) == pytest.approx(wilson(numbers["correct"], 80))
    assert numbers["loss"] == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(10)), rel=1e-4)
    assert numbers["precision"] == pytest.approx(metrics.precision_score(truth, above, average="micro"))
    assert numbers["recall"] == pytest.approx(metrics.recall_score(truth, above, average="micro"))
    assert numbers["auc"] == pytest.approx(metrics.roc_auc_score(truth.ravel(), probabilities.ravel()), abs=1e-3)
    negative, positive = metrics.confusion_matrix(truth.ravel(), above.ravel())
    assert [numbers["true_negatives"], numbers["false_positives"]] == negative.tolist()
    assert [numbers["false_negatives"], numbers["true_positives"]] == positive.tolist()

    confusion = np.zeros((10, 10), dtype=int)
    for true, guess, count in found["confusion"]:
        confusion[true, guess] = count
    assert np.array_equal(confusion, metrics.confusion_matrix(labels, guesses, labels=range(10)))

    assert [row["path"] for row in rows] == paths
    assert [row["label"] for row in rows] == names
    assert [row["predicted"] for row in rows] == [str(guess) for guess in guesses]
    assert [row["correct"] for row in rows] == [str(int(right)) for right in labels == guesses]
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == pytest.approx(probabilities.max(axis=1).tolist(), rel=1e-4)
    assert found["checks"]["saturated_images"] == sum(confidence >= 1 - 2**-24 for confidence in confidences)


def test_confidences_that_round_to_one_are_counted(evaluate, make_dataset, tmp_path):
    """The probability of the second class is that of a logit of 100 times the brightness: 1 from 16.64 on."""
    levels = np.array([0, 10, 40, 42, 43, 60, 255], np.uint8)
    images = keras.Input((28, 28, 1))
    network = keras.Model(images, keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(images)))
    weights = np.zeros((784, 2), np.float32)
    weights[:, 1] = 100 / 784
    network.layers[-1].set_weights([weights, np.zeros(2, np.float32)])
    described = {"architecture": "shallow_net", "input_shape": (28, 28, 1), "weights": "none"}
    model_artifact.save(network, tmp_path / "model", class_names=("dark", "bright"), **described)
    pixels = np.broadcast_to(levels[:, None, None, None], (len(levels), 28, 28, 1))
    data = make_dataset(pixels, class_names=("dark", "bright"))
    found, *_ = evaluate(data, tmp_path / "model")
    assert (
        found["checks"]["saturated_images"] == sum(100 * int(level) / 255 >= 24 * math.log(2) for level in levels) == 3
    )


def test_auc_orders_images_whose_probabilities_are_all_one(evaluate, make_dataset, tmp_path):
    """The logit of the class `bright` is 0 to 4,000: its probability is 1 in any float from 37 on."""
    levels = np.array([0, 20, 60, 100, 180, 255], np.uint8)
    images = keras.Input((28, 28, 1))
    network = keras.Model(images, keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(images)))
    weights = np.zeros((784, 2), np.float32)
    weights[:, 1] = 4000 / 784
    network.layers[-1].set_weights([weights, np.zeros(2, np.float32)])
    described = {"architecture": "shallow_net", "input_shape": (28, 28, 1), "weights": "none"}
    model_artifact.save(network, tmp_path / "model", class_names=("dark", "bright"), **described)
    pixels = np.broadcast_to(levels[:, None, None, None], (len(levels), 28, 28, 1))
    labels = np.array([0, 0, 0, 1, 1, 1])
    evaluation, *_ = evaluate(make_dataset(pixels, labels=labels, class_names=("dark", "bright")), tmp_path / "model")
    logits = np.array([[-level, level] for level in levels.astype(float)])
    truth = np.eye(2)[labels]
    right, wrong = logits[truth == 1], logits[truth == 0]
    exact = np.mean((right[:, None] > wrong) + (right[:, None] == wrong) / 2)
    assert evaluation["metrics"]["auc"] == pytest.approx(exact)


def test_fault_no_batch_size_changes_a_result(evaluate, attacked, le_net_artifact):
    results = {size: evaluate(attacked, le_net_artifact, f"by_{size}", batch_size=size) for size in (1, 32, 80, 1000)}
    one, one_rows, *_ = results[1]
    for found, rows, *_ in results.values():
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
        assert found["confusion"] == one["confusion"]
        assert found["distances"] == one["distances"]
        assert [row["predicted"] for row in rows] == [row["predicted"] for row in one_rows]


def repacked(tar, path, class_names):
    """The images of those classes of a dataset, in that order of classes."""
    with Dataset(tar) as data:
        names = data.header.class_names
        kept = sorted(
            (sample for sample in data.samples() if names[sample.label] in class_names),
            key=lambda sample: class_names.index(names[sample.label]),
        )
        header = Header(
            name="load_dataset",
            class_names=tuple(class_names),
            counts=tuple(sum(names[sample.label] == name for sample in kept) for name in class_names),
            image_shape=data.header.image_shape,
            split="testing",
        )
        writer.write(
            path,
            header,
            (Sample(class_names.index(names[sample.label]), sample.stem, sample.pixels) for sample in kept),
        )
    return path


@pytest.mark.parametrize(
    "class_names",
    [list("123456789"), list("02468"), list("9876543210"), ["7"]],
    ids=["first missing", "odd ones missing", "reversed", "one alone"],
)
def test_fault_labels_are_not_shifted_by_a_missing_class(evaluate, digits_tar, le_net_artifact, tmp_path, class_names):
    _, whole, *_ = evaluate(digits_tar, le_net_artifact, "whole")
    tar = repacked(digits_tar, tmp_path / "some.tar", class_names)
    found, rows, *_ = evaluate(tar, le_net_artifact, "some")
    expected = {row["path"]: row for row in whole if row["label"] in class_names}
    assert {row["path"]: (row["label"], row["predicted"], row["correct"]) for row in rows} == {
        path: (row["label"], row["predicted"], row["correct"]) for path, row in expected.items()
    }
    assert found["metrics"]["correct"] == sum(row["correct"] == "1" for row in expected.values())
    # The matrix speaks of the model's classes.
    assert {true for true, _, _ in found["confusion"]} == {int(name) for name in class_names}
    assert found["dataset"]["class_names"] == class_names


EARLY = """
import pathlib, sys
from evasion.components.infer import task
from evasion.components.infer.confusion import readable
model, evaluation, *datasets = map(pathlib.Path, sys.argv[1:])
for dataset in datasets:
    try:
        task.infer(dataset=dataset, others=[], model=model, evaluation=evaluation, batch_size=4, seed=0)
    except Exception as error:
        print(type(error).__name__, error)
assert not {"tensorflow", "keras", "art"} & set(sys.modules)
"""


def test_data_that_the_model_does_not_fit_is_refused_before_tensorflow_is_loaded(
    mlflow_store, make_dataset, random_pixels, le_net_artifact, tmp_path
):
    datasets = [
        make_dataset(random_pixels(4, (28, 28, 1)), class_names=("7", "cat")),
        make_dataset(random_pixels(4, (32, 32, 3)), class_names=("7", "8")),
    ]
    command = [sys.executable, "-c", EARLY, le_net_artifact, tmp_path / "evaluation", *datasets]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    unknown, shape = done.stdout.splitlines()
    assert unknown.startswith("ModelError The model does not know 1 of the dataset's 2 classes: cat. It knows 0, 1, 2")
    assert shape.startswith(
        "ModelError The dataset's images are 32×32×3, but the model le_net takes 28×28×1: load the images"
    )
    assert not (tmp_path / "evaluation").exists()
    runs = mlflow_store.search_runs([mlflow_store.get_experiment_by_name("evasion").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]


def test_attack_success_is_counted_among_the_images_that_were_right(evaluate, digits_tar, attacked, le_net_artifact):
    clean, before, *_ = evaluate(digits_tar, le_net_artifact, "clean")
    found, after, *_ = evaluate(attacked, le_net_artifact, "attacked")
    right = {row["path"] for row in before if row["correct"] == "1"}
    fooled = {row["path"].replace("adv_", "") for row in after if row["correct"] == "0"} & right
    numbers = found["metrics"]
    assert 0 < len(fooled) < len(right) < 80
    assert (numbers["right_before"], numbers["attack_successes"]) == (len(right), len(fooled))
    assert numbers["attack_success_rate"] == pytest.approx(len(fooled) / len(right))
    bounds = numbers["attack_success_rate_low"], numbers["attack_success_rate_high"]
    assert bounds == pytest.approx(wilson(len(fooled), len(right)))
    assert found["checks"]["zero_gradient_images"] == 0
    assert found["checks"]["gradient_from_logits"] is True
    assert not {name for name in clean["metrics"] if "attack" in name or "before" in name}
    assert clean["checks"]["zero_gradient_images"] is None
    assert clean["checks"]["gradient_from_logits"] is None


def test_what_an_attack_recorded_of_each_image_is_counted(evaluate, digits_tar, le_net_artifact, tmp_path):
    sizes = {"eps": 0.08, "eps_step": 0.02, "max_iter": 3, "num_random_init": 0, "norm": "inf", "eot_samples": 1}
    tar = tmp_path / "pgd.tar"
    pgd_task.pgd(
        dataset=digits_tar, model=le_net_artifact, adversarial=tar, defenses="", batch_size=32, seed=1, **sizes
    )
    found, rows, *_ = evaluate(tar, le_net_artifact)
    checks = found["checks"]
    fooled = [row["fooled_best"] == "1" for row in rows]
    claimed = [row for row in rows if row["fooled_best"] == "1" and row["clean_prediction"] == row["label"]]
    assert 0 < checks["standing_images"] == fooled.count(False) < len(rows)
    standing = [row for row in rows if row["fooled_best"] != "1"]
    assert checks["rising_images"] == sum(row["loss_rises"] == "1" for row in standing) > 0
    assert checks["fooled_earlier_images"] == sum((row["fooled_best"], row["fooled_end"]) == ("1", "0") for row in rows)
    assert checks["claimed_images"] == len(claimed) > 0
    assert checks["unconfirmed_images"] == 0  # the model is no random defense: what fools it as saved does so again
    assert not any(int(row["correct"]) for row in claimed)
    assert checks["black_box_only_images"] is None  # no column says which member fooled an image


@pytest.mark.parametrize("column", ["clean_prediction", "clean_confidence", "zero_gradient"])
def test_attacked_images_without_what_the_attack_recorded_are_refused(
    evaluate, attacked, le_net_artifact, tmp_path, column
):
    """What is counted of an attack would be of other images, or nothing."""
    tar = tmp_path / "cut.tar"
    with Dataset(attacked) as data:
        samples = list(data.samples())
        for sample in samples:
            del sample.fields[column]
        writer.write(tar, data.header, samples)
    with pytest.raises(DatasetError, match=f"must have the column {column}, for the images were attacked"):
        evaluate(tar, le_net_artifact, "refused")
    assert not (tmp_path / "refused").exists()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A model that nothing was aimed at: never trained, of other weights."""
    from evasion.components.common.models import architectures

    folder = tmp_path_factory.mktemp("other")
    network = architectures.build("shallow_net", 10, "none", "", 1)
    model_artifact.save(
        network,
        folder,
        architecture="shallow_net",
        input_shape=(28, 28, 1),
        class_names=tuple("0123456789"),
        weights="none",
    )
    return folder


def test_an_attack_on_another_model_has_no_success_rate_here(evaluate, attacked, other_model):
    found, *_ = evaluate(attacked, other_model)
    assert not {"right_before", "attack_successes", "attack_success_rate"} & set(found["metrics"])
    assert found["checks"]["zero_gradient_images"] is None


def test_nothing_right_before_leaves_the_rate_out(evaluate, other_model, make_dataset, digits, mlflow_store, tmp_path):
    network = model_artifact.load(other_model)
    x = digits.pixels[:40]
    wrong = (network.predict(x / np.float32(255), verbose=0).argmax(axis=1) + 1) % 10
    order = np.argsort(wrong, kind="stable")
    data = make_dataset(x[order], wrong[order].tolist(), "0123456789")
    fgm_task.fgm(dataset=data, model=other_model, adversarial=tmp_path / "fgm.tar", **ATTACK)
    found, *_ = evaluate(tmp_path / "fgm.tar", other_model)
    assert found["metrics"]["right_before"] == 0
    assert "attack_success_rate" not in found["metrics"]


def test_distances_and_provenance_are_those_of_the_dataset(evaluate, digits_tar, attacked, le_net_artifact):
    clean, *_ = evaluate(digits_tar, le_net_artifact, "clean")
    found, rows, *_ = evaluate(attacked, le_net_artifact, "attacked")
    assert clean["distances"] == {}
    before, after = unpacked(digits_tar), unpacked(attacked)
    norms = [np.linalg.norm((after[path].astype(float) - before[path.replace("adv_", "")]) / 255) for path in after]
    assert found["distances"]["l_2_norm"]["mean"] == pytest.approx(np.mean(norms))
    assert found["distances"]["l_2_norm"]["median"] == pytest.approx(np.median(norms))
    assert found["distances"]["l_infinity_norm"]["max"] == pytest.approx(
        12 / 255
    )  # 0.05 is 12.75 levels, rounded towards the original
    assert [float(row["l_2_norm"]) for row in rows] == pytest.approx(norms)
    with tarfile.open(attacked) as tar:
        last = tar.getmembers()[-1]
    members = attacked.read_bytes()[: last.offset_data + -(-last.size // 512) * 512]  # all but the zeros at the end
    assert found["dataset"]["sha256"] == hashlib.sha256(members).hexdigest()
    assert found["dataset"]["prefix"] == "adv_"
    assert [entry["kind"] for entry in found["dataset"]["provenance"]] == ["load", "attack"]
    assert found["dataset"]["provenance"][1]["parent_sha256"] == clean["dataset"]["sha256"]
    assert found["dataset"]["provenance"][1]["model_sha256"] == found["model"]["sha256"]
    assert found["model"]["sha256"] == hashlib.sha256((le_net_artifact / "model.keras").read_bytes()).hexdigest()
    assert found["seed"] == 0
    assert found["batch_size"] == 32
    assert {"keras", "tensorflow", "evasion-pipelines", "numpy"} <= set(found["versions"])


def test_every_evaluation_keeps_the_same_originals(evaluate, digits_tar, attacked, le_net_artifact, tmp_path):
    both = {"clean": digits_tar, "attacked": attacked}
    for name, tar in list(both.items()):
        both[f"{name}, defended"] = tmp_path / f"{name}.tar"
        jpeg_task.jpeg_compression(dataset=tar, others=[], defended=both[f"{name}, defended"], **COMPRESSION)
    originals = {}
    for name, tar in both.items():
        found, rows, folder, _ = evaluate(tar, le_net_artifact, name)
        kept = {path.relative_to(folder / "images").as_posix(): path for path in folder.glob("images/*/*.png")}
        saved = unpacked(tar)
        assert len(kept) == sampling.SHOWN == 24
        assert set(kept) <= {row["path"] for row in rows}
        assert all(np.array_equal(np.asarray(Image.open(path)), saved[name]) for name, path in kept.items())
        prefix = found["dataset"]["prefix"]
        assert prefix == {"clean": "", "attacked": "adv_", "clean, defended": "def_"}.get(name, "def_adv_")
        originals[name] = {path.replace(f"/{prefix}", "/") for path in kept}
    assert len(originals) == 4
    assert all(kept == originals["clean"] for kept in originals.values())
    assert len({path.partition("/")[0] for path in originals["clean"]}) > 3  # of several classes


def test_fewer_images_than_are_shown_are_all_kept(evaluate, make_dataset, digits, le_net_artifact):
    _, _, folder, _ = evaluate(make_dataset(digits.pixels[:5], class_names="38"), le_net_artifact)
    assert len(list(folder.glob("images/*/*.png"))) == 5


@pytest.fixture(scope="module")
def thousand_classes(tmp_path_factory):
    from evasion.components.common.models import architectures

    folder = tmp_path_factory.mktemp("thousand")
    keras.utils.set_random_seed(2)
    model_artifact.save(
        architectures.build("shallow_net", 1000, "none", "", 0),
        folder,
        architecture="shallow_net",
        input_shape=(28, 28, 1),
        class_names=architectures.imagenet_classes(),
        weights="none",
    )
    return folder


def test_the_confusion_matrix_of_a_thousand_classes_can_be_shown(
    evaluate, make_dataset, random_pixels, thousand_classes
):
    class_names = model_artifact.Card.read(thousand_classes).class_names[::20]
    data = make_dataset(random_pixels(150, (28, 28, 1)), class_names=class_names)
    found, _, _, returned = evaluate(data, thousand_classes)
    assert returned["categories"][-1] == "other"
    assert len(returned["categories"]) == len(returned["matrix"]) == 31
    assert {len(row) for row in returned["matrix"]} == {31}
    assert sum(map(sum, returned["matrix"])) == found["metrics"]["images"] == 150
    assert all(type(count) is int for row in returned["matrix"] for count in row)  # Kubeflow takes no NumPy number


def test_the_matrix_shows_the_classes_with_the_most_errors():
    names = tuple(f"class {number:04d}" for number in range(1000))
    confusion = [(number, number, 5) for number in range(1000)]
    confusion += [(number, number + 1, 3) for number in range(100, 130)] + [(500, 900, 1)]
    categories, matrix = readable(confusion, names)
    assert categories == [*names[100:130], "other"]
    assert sum(map(sum, matrix)) == 5000 + 90 + 1
    places = {name: place for place, name in enumerate(categories)}
    assert matrix[places["class 0110"]][places["class 0111"]] == 3
    assert matrix[places["class 0110"]][places["class 0110"]] == 5
    assert matrix[-1][-1] >= 5 * (1000 - 30)


def test_few_classes_are_all_shown():
    categories, matrix = readable([(0, 2, 4), (1, 1, 7)], ("cat", "dog", "eel"))
    assert categories == ["cat", "dog", "eel"]
    assert matrix == [[0, 0, 4], [0, 7, 0], [0, 0, 0]]


@pytest.fixture(scope="module")
def several(le_net_artifact, digits_tar, tmp_path_factory, empty_mlflow):
    """Tars as an evaluation has them: the digits, those of two attackers, and all of them defended."""
    folder = tmp_path_factory.mktemp("several")
    known = {"jpeg_compression": {name: COMPRESSION[name] for name in ("quality", "channels_first")}}
    with tracked_in(folder, empty_mlflow):
        attack = ATTACK | {"defenses": json.dumps(known)}
        fgm_task.fgm(dataset=digits_tar, model=le_net_artifact, adversarial=folder / "fgm.tar", **attack)
        defended = folder / "jpeg.tar"
        jpeg_task.jpeg_compression(dataset=digits_tar, others=[folder / "fgm.tar"], defended=defended, **COMPRESSION)
    return [digits_tar, folder / "fgm.tar", defended]


def both_right(folder, clean, attacked):
    """How many images are right in two datasets of an evaluation; no name of the digits begins with a prefix."""
    right = []
    for name in (clean, attacked):
        with (folder / name / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        right.append({row["path"].replace("def_", "").replace("adv_", "") for row in rows if row["correct"] == "1"})
    return len(right[0] & right[1])


AWAITED = "fgm_aware_of_jpeg_compression"
EVALUATED = ["load_dataset", "fgm", "jpeg_compression", "jpeg_compression_of_fgm", f"jpeg_compression_of_{AWAITED}"]


def test_several_datasets_are_evaluated_as_if_each_were_alone(
    evaluate, several, le_net_artifact, tmp_path, mlflow_store
):
    folder = tmp_path / "all"
    settings = SETTINGS | {"others": several[1:], "batch_size": 7}
    returned = task.infer(dataset=several[0], model=le_net_artifact, evaluation=folder, **settings)
    # What is aimed at a defense says nothing before it has met that defense.
    assert json.loads((folder / "evaluations.json").read_text()) == EVALUATED
    assert sorted(one.name for one in folder.iterdir()) == sorted([*EVALUATED, "evaluations.json"])
    experiment = mlflow_store.get_experiment_by_name("evasion")
    (run,) = mlflow_store.search_runs([experiment.experiment_id])
    assert run.info.run_name == "infer"
    assert {file.path for file in mlflow_store.list_artifacts(run.info.run_id)} == set(EVALUATED)
    expected = {}
    for tar in several:
        for one in Dataset.all_in(tar):
            name = one.header.name
            if name == AWAITED:
                continue
            with one:
                one.copy_to(tmp_path / f"{name}.tar")
            found, _, alone, told = evaluate(tmp_path / f"{name}.tar", le_net_artifact, f"{name} alone", batch_size=7)
            assert (folder / name / "evaluation.json").read_bytes() == (alone / "evaluation.json").read_bytes()
            assert (folder / name / "predictions.csv").read_bytes() == (alone / "predictions.csv").read_bytes()
            with np.load(folder / name / "counts.npz") as some, np.load(alone / "counts.npz") as same:
                assert set(some) == set(same)
                assert all(np.array_equal(some[key], same[key]) for key in same)
            images = {path.relative_to(alone): path.read_bytes() for path in alone.glob("images/*/*.png")}
            assert len(images) == sampling.SHOWN
            assert {
                path.relative_to(folder / name): path.read_bytes() for path in folder.glob(f"{name}/images/*/*.png")
            } == images
            expected |= {
                f"{name}/{key}" if name != "load_dataset" else key: value for key, value in found["metrics"].items()
            }
            logged = {file.path for file in mlflow_store.list_artifacts(run.info.run_id, name)}
            assert logged == {f"{name}/evaluation.json", f"{name}/predictions.csv"}
            if found["distances"]:
                mean = found["distances"]["l_2_norm"]["mean"]
                assert run.data.metrics[f"{name}/l_2_norm_mean"] == pytest.approx(mean)
            if name == "load_dataset":
                assert (returned["categories"], returned["matrix"]) == (told["categories"], told["matrix"])
    expected |= {
        f"{name}/{key}": value
        for name in EVALUATED[3:]
        for key, value in share("robust_accuracy", both_right(folder, "jpeg_compression", name), 80).items()
    }
    assert returned["metrics"] == expected
    assert run.data.metrics.items() >= expected.items()
    assert {name for name in EVALUATED if f"{name}/robust_accuracy" in expected} == set(EVALUATED) - {
        "load_dataset",
        "jpeg_compression",
    }
    # The datasets are not all the same, so that one taken for another would be seen.
    assert len({(folder / name / "predictions.csv").read_bytes() for name in EVALUATED}) == len(EVALUATED)


def test_the_first_dataset_is_the_one_whose_metrics_bear_no_name(several, le_net_artifact, tmp_path, mlflow_store):
    returned = task.infer(
        dataset=several[1],
        model=le_net_artifact,
        evaluation=tmp_path / "evaluation",
        **SETTINGS | {"others": several[:1]},
    )
    assert json.loads((tmp_path / "evaluation" / "evaluations.json").read_text()) == ["fgm", "load_dataset"]
    assert returned["metrics"]["attack_successes"] > 0
    assert "load_dataset/attack_successes" not in returned["metrics"]
    assert returned["metrics"]["load_dataset/correct"] == returned["metrics"]["right_before"]


def test_a_dataset_that_awaits_a_defense_is_evaluated_where_it_is_alone(
    evaluate, several, le_net_artifact, tmp_path, mlflow_store
):
    with Dataset(several[1], AWAITED) as one:
        assert one.header.awaited_defense == "jpeg_compression"
        one.copy_to(tmp_path / "awaited.tar")
    found, *_ = evaluate(tmp_path / "awaited.tar", le_net_artifact)
    assert found["dataset"]["name"] == AWAITED


def test_datasets_of_one_name_are_refused_and_nothing_is_left(digits_tar, le_net_artifact, tmp_path, mlflow_store):
    out = tmp_path / "out" / "evaluation"
    with pytest.raises(
        ValueError, match=r"names of their own, none of them evaluations\.json\. Received: load_dataset, load_dataset"
    ):
        task.infer(dataset=digits_tar, model=le_net_artifact, evaluation=out, **SETTINGS | {"others": [digits_tar]})
    assert list((tmp_path / "out").iterdir()) == []
    experiment = mlflow_store.get_experiment_by_name("evasion")
    assert [run.info.status for run in mlflow_store.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_one_of_several_datasets_that_the_model_does_not_fit_stops_all(
    digits_tar, le_net_artifact, tmp_path, mlflow_store, make_dataset, random_pixels, monkeypatch
):
    monkeypatch.setattr(
        "evasion.components.common.models.classifier.load", lambda _: pytest.fail("the model was loaded")
    )
    other = make_dataset(random_pixels(4, (28, 28, 1)), class_names=("7", "cat"), name="other")
    out = tmp_path / "out" / "evaluation"
    with pytest.raises(ModelError, match="does not know 1 of the dataset's 2 classes: cat"):
        task.infer(dataset=digits_tar, model=le_net_artifact, evaluation=out, **SETTINGS | {"others": [other]})
    assert list((tmp_path / "out").iterdir()) == []


def test_what_was_found_is_logged(evaluate, digits_tar, le_net_artifact, mlflow_store):
    found, *_ = evaluate(digits_tar, le_net_artifact, seed=-1)
    (run,) = mlflow_store.search_runs([mlflow_store.get_experiment_by_name("evasion").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(found["metrics"])
    assert run.data.params["seed"] == str(found["seed"])
    assert found["seed"] >= 0
    assert {file.path for file in mlflow_store.list_artifacts(run.info.run_id)} == {
        "evaluation.json",
        "predictions.csv",
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.json").unlink(), "The model has no model.json with its class names"),
        (lambda folder: (folder / "model.keras").unlink(), "The model has no model.keras"),
        (lambda folder: (folder / "model.keras").write_bytes(b"other"), "it is damaged or replaced"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json does not have the expected form"),
    ],
    ids=["no card", "no model", "other model", "cut card"],
)
def test_a_damaged_model_is_refused_and_nothing_is_left(
    mlflow_store, digits_tar, le_net_artifact, tmp_path, damage, message
):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.keras", "model.json"):
        (folder / name).write_bytes((le_net_artifact / name).read_bytes())
    damage(folder)
    with pytest.raises(ModelError, match=message):
        task.infer(dataset=digits_tar, model=folder, evaluation=tmp_path / "out" / "evaluation", **SETTINGS)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_without_finite_outputs_is_refused(mlflow_store, digits_tar, other_model, tmp_path):
    network = model_artifact.load(other_model)
    network.set_weights([np.full_like(weight, np.nan) for weight in network.get_weights()])
    card = {"architecture": "shallow_net", "input_shape": (28, 28, 1), "class_names": tuple("0123456789")}
    model_artifact.save(network, tmp_path / "model", weights="trained", **card)
    with pytest.raises(ModelError, match="outputs must be finite numbers"):
        task.infer(dataset=digits_tar, model=tmp_path / "model", evaluation=tmp_path / "evaluation", **SETTINGS)
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be a positive integer\. Received: batch_size=0"),
        ({"batch_size": True}, r"batch_size must be a positive integer\. Received: batch_size=True"),
        ({"seed": -5}, r"seed must be an integer in \[-1, 4294967295\]\. Received: seed=-5"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_read(changed, message):
    nowhere = Path("/nowhere")
    with pytest.raises(ValueError, match=message):
        task.infer(dataset=nowhere, model=nowhere, evaluation=nowhere, **SETTINGS | changed)
