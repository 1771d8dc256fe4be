"""Training: what the five architectures are, how long and on what they train, and what comes out."""

import itertools
import json
import math
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from evasion.components.common.data import writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import Header, Sample
from evasion.components.common.data.pixels import to_float
from evasion.components.common.models import architectures
from evasion.components.common.models import artifact as model_artifact
from evasion.components.common.models.applications import APPLICATIONS
from evasion.components.infer import task as infer_task
from evasion.components.train import task
from evasion.components.train.chance import AfterTraining

SEED = 7  # of the fixture `train`, where a test names no other


def weights_of(result):
    return model_artifact.load(result["folder"]).get_weights()


def same(weights, others):
    return all(np.array_equal(first, second) for first, second in zip(weights, others, strict=True))


# What is built.

# DESIGN.md's table: the class and the arguments of each layer.
LAYERS = {
    "shallow_net": [("Flatten",), ("Dense", 32, "sigmoid"), ("Dense", 7, "linear"), ("Softmax",)],
    "le_net": [
        ("Conv2D", 32, (3, 3), (1, 1), "relu"),
        ("Conv2D", 64, (3, 3), (1, 1), "relu"),
        ("MaxPooling2D", (2, 2), (2, 2)),
        ("Dropout", 0.25),
        ("Flatten",),
        ("Dense", 128, "relu"),
        ("Dropout", 0.5),
        ("Dense", 7, "linear"),
        ("Softmax",),
    ],
    "alex_net": [
        ("Conv2D", 96, (11, 11), (4, 4), "relu"),
        ("MaxPooling2D", (3, 3), (2, 2)),
        ("BatchNormalization",),
        ("Conv2D", 256, (5, 5), (1, 1), "relu"),
        ("MaxPooling2D", (3, 3), (2, 2)),
        ("BatchNormalization",),
        ("Conv2D", 256, (3, 3), (1, 1), "relu"),
        ("Conv2D", 384, (3, 3), (1, 1), "relu"),
        ("Conv2D", 384, (3, 3), (1, 1), "relu"),
        ("MaxPooling2D", (3, 3), (2, 2)),
        ("BatchNormalization",),
        ("Flatten",),
        ("Dense", 4096, "tanh"),
        ("Dropout", 0.5),
        ("Dense", 4096, "tanh"),
        ("Dropout", 0.5),
        ("Dense", 7, "linear"),
        ("Softmax",),
    ],
    "resnet50": [
        ("Conv2D", 3, (1, 1), (1, 1), "linear"),
        ("Functional", "resnet50", False),
        ("GlobalAveragePooling2D",),
        ("Dense", 1024, "relu"),
        ("Dense", 7, "linear"),
        ("Softmax",),
    ],
    "vgg16": [
        ("Conv2D", 3, (1, 1), (1, 1), "linear"),
        ("Functional", "vgg16", False),
        ("GlobalAveragePooling2D",),
        ("Dense", 1024, "relu"),
        ("Dense", 7, "linear"),
        ("Softmax",),
    ],
}
INPUTS = {
    "shallow_net": (28, 28, 1),
    "le_net": (28, 28, 1),
    "alex_net": (224, 224, 1),
    "resnet50": (224, 224, 3),
    "vgg16": (224, 224, 3),
    "mobilenetv2": (224, 224, 3),
}


def described(layer):
    kind = type(layer).__name__
    return (
        kind,
        *{
            "Conv2D": lambda: (layer.filters, layer.kernel_size, layer.strides, layer.activation.__name__),
            "Dense": lambda: (layer.units, layer.activation.__name__),
            "MaxPooling2D": lambda: (layer.pool_size, layer.strides),
            "Dropout": lambda: (layer.rate,),
            "Functional": lambda: (layer.name, layer.trainable),
        }.get(kind, tuple)(),
    )


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_the_original(name):
    network = architectures.build(name, 7, "none", "", 0)
    assert network.input_shape == (None, *INPUTS[name])
    assert architectures.ARCHITECTURES[name].input_shape == INPUTS[name]
    assert network.name == name
    assert [described(layer) for layer in network.layers[1:]] == LAYERS[name]
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.MaxPooling2D):
            assert layer.padding == "valid"
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) and layer.name != "imagenet_preprocessing":
            assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)
            assert isinstance(layer.bias_initializer, keras.initializers.Zeros)
            assert not np.any(layer.bias)
        if isinstance(layer, keras.layers.BatchNormalization):
            default = keras.layers.BatchNormalization()
            assert (layer.momentum, layer.epsilon) == (default.momentum, default.epsilon)


def test_every_architecture_is_in_the_table():
    """Of the classifiers of Keras, those of the original."""
    assert set(architectures.ARCHITECTURES) - set(APPLICATIONS) == set(LAYERS) - {"resnet50", "vgg16"}


@pytest.mark.parametrize(
    "name",
    [
        "shallow_net",
        "le_net",
        pytest.param("alex_net", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("vgg16", marks=pytest.mark.slow),
        pytest.param("mobilenetv2", marks=pytest.mark.slow),
    ],
)
def test_every_architecture_trains_for_a_step(train, make_dataset, random_pixels, name):
    data = make_dataset(random_pixels(6, INPUTS[name]), class_names=("cat", "dog", "eel"))
    result = train(data, model_architecture=name, batch_size=6)
    before = architectures.build(name, 3, "none", "", SEED)
    after = model_artifact.load(result["folder"])
    assert after.name == name
    assert after(to_float(random_pixels(2, INPUTS[name]))).numpy().sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    for layer, trained_layer in zip(before.layers, after.layers, strict=True):
        if layer.weights:
            # Weights, order and dropout come from the seed alone, so what did not train is what was built.
            assert same(layer.get_weights(), trained_layer.get_weights()) != bool(layer.trainable_weights), layer.name


@pytest.mark.parametrize("optimizer", task.OPTIMIZERS)
def test_every_optimizer_steps_as_kerass_own(train, digits, make_dataset, optimizer):
    pixels, labels = digits.pixels[:40], np.minimum(digits.labels[:40], 3)
    order = np.argsort(labels, kind="stable")
    data = make_dataset(pixels[order], labels[order].tolist(), "0123")
    result = train(data, optimizer=optimizer, learning_rate=0.01, epochs=2.0, batch_size=40)
    expected = architectures.build("shallow_net", 4, "none", "", SEED)
    expected.compile(optimizer=optimizer, loss="categorical_crossentropy")
    expected.optimizer.learning_rate = 0.01
    for _ in range(2):
        expected.train_on_batch(to_float(pixels), np.eye(4, dtype=np.float32)[labels])
    weights = weights_of(result)
    for actual, weight in zip(weights, expected.get_weights(), strict=True):
        assert np.allclose(actual, weight, atol=1e-5)


# How long, and on what.


class Numbered(keras.Model):
    """Notes which images it trains on and which validate it; image i is filled with the number i."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2, activation="softmax")
        self.trained, self.validated = [], []

    def call(self, x, training=False):
        return self.dense(keras.ops.reshape(x, (-1, 1)))

    @staticmethod
    def numbers(data):
        x, y = data
        numbers = np.rint(x.numpy()[:, 0, 0, 0] * 255).astype(int).tolist()
        assert y.numpy().argmax(axis=1).tolist() == [int(number >= IMAGES // 2) for number in numbers]
        return numbers

    def train_step(self, data):
        self.trained.append(self.numbers(data))
        return super().train_step(data)

    def test_step(self, data):
        self.validated.append(self.numbers(data))
        return super().test_step(data)


IMAGES = 50


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Fifty images of one pixel, whose levels are their numbers."""
    path = tmp_path_factory.mktemp("numbered") / "dataset.tar"
    header = Header(
        name="load_dataset",
        class_names=("low", "high"),
        counts=(IMAGES // 2, IMAGES // 2),
        image_shape=(1, 1, 1),
        split="training",
    )
    samples = (
        Sample(int(number >= IMAGES // 2), f"{number:02d}", np.full((1, 1, 1), number, np.uint8))
        for number in range(IMAGES)
    )
    writer.write(path, header, samples)
    return path


def fit_numbered(path, *, epochs=1.0, batch_size=8, validation_split=0.0, seed=0):
    network = Numbered()
    # Learning nothing to speak of: only early stopping may end it before its time, and that after five epochs.
    network.compile(optimizer=keras.optimizers.SGD(1e-6), loss="categorical_crossentropy", run_eagerly=True)
    with Dataset(path) as data:
        parameters = {"epochs": epochs, "batch_size": batch_size, "validation_split": validation_split, "seed": seed}
        metrics = task._fit(network, data, parameters, replicas=1)
    return network, metrics


@pytest.mark.parametrize(
    ("epochs", "batches", "passes"),
    [(1.0, 7, 1), (0.5, 4, 1), (2.5, 18, 3), (2.0, 14, 2), (1 / 7, 1, 1), (0.001, 1, 1), (1.1, 8, 2)],
)
def test_epochs_may_be_a_fraction(numbered, epochs, batches, passes):
    network, metrics = fit_numbered(numbered, epochs=epochs)  # 50 images in batches of 8 are 7 batches
    assert len(network.trained) == batches
    assert metrics["epochs_trained"] == passes


def test_every_epoch_takes_every_image_once_in_an_order_of_its_own(numbered):
    network, _ = fit_numbered(numbered, epochs=3.0)
    assert [len(batch) for batch in network.trained] == 3 * [8, 8, 8, 8, 8, 8, 2]
    epochs = [flat(network.trained[start : start + 7]) for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != sorted(epochs[0])


def test_without_a_validation_split_nothing_validates(numbered):
    network, metrics = fit_numbered(numbered)
    assert network.validated == []
    assert set(metrics) == {"training_loss", "best_epoch", "epochs_trained"}


@pytest.mark.parametrize(("share", "held_out"), [(0.2, 10), (0.5, 25), (0.03, 2), (0.98, 49)])
def test_the_validation_set_is_a_share_that_is_never_trained_on(numbered, share, held_out):
    network, metrics = fit_numbered(numbered, validation_split=share, epochs=2.5)
    validated, trained = set(flat(network.validated)), set(flat(network.trained))
    assert len(validated) == held_out
    assert not validated & trained
    assert validated | trained == set(range(IMAGES))
    # Also after an epoch that was cut short.
    assert sum(map(len, network.validated)) == metrics["epochs_trained"] * held_out
    assert "training_val_loss" in metrics


def test_the_seed_alone_says_what_validates(numbered):
    (one, _), (again, _), (other, _) = (fit_numbered(numbered, validation_split=0.2, seed=seed) for seed in (3, 3, 4))
    assert one.validated == again.validated
    assert one.trained == again.trained
    assert set(flat(one.validated)) != set(flat(other.validated))


class Scripted(keras.Model):
    """Its only weight counts the batches it trained on; its loss is read from a script by that count."""

    def __init__(self, script, metric):
        super().__init__()
        self.script, self.metric = script, metric
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, dtype="int32")

    def call(self, x, training=False):
        return x

    def train_step(self, data):
        self.count.assign_add(1)
        return {"loss": self.script[int(self.count)] if self.metric == "loss" else 1.0}

    def test_step(self, data):
        return {"loss": self.script[int(self.count)]}

    def get_metrics_result(self):
        return {}  # Keras then takes what the steps return


@pytest.mark.parametrize("metric", ["val_loss", "loss"])
@pytest.mark.parametrize(
    ("script", "best", "epochs"),
    [
        ([9, 0.8, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.1], 2, 7),
        # Less than 0.01 does not keep training going, but the best is the best.
        ([9, 0.8, 0.5, 0.495, 0.494, 0.493, 0.492, 0.491, 0.1], 7, 7),
        ([9, 0.8, 0.9, 0.9, 0.9, 0.9, 0.5, 0.6, 0.7], 6, 8),  # the fifth epoch was in time; epochs ends it
        ([9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 8, 8),
    ],
    ids=["worse", "hardly better", "in time", "ever better"],
)
def test_early_stopping_restores_the_best_weights(numbered, script, best, epochs, metric):
    network = Scripted(script, metric)
    network.compile(loss="mse", run_eagerly=True)
    split = 0.5 if metric == "val_loss" else 0.0
    with Dataset(numbered) as data:
        parameters = {"epochs": 8.0, "batch_size": IMAGES, "validation_split": split, "seed": 0}
        metrics = task._fit(network, data, parameters, replicas=1)
    assert metrics["epochs_trained"] == epochs
    assert metrics["best_epoch"] == best
    # The metrics are those of the weights that are kept.
    assert metrics[f"training_{metric}"] == pytest.approx(script[best])
    assert int(network.count) == best


# What comes out.


def test_the_artifact_describes_the_model(train, digits_tar):
    result = train(digits_tar)
    card = model_artifact.Card.read(result["folder"])
    assert card.architecture == "shallow_net"
    assert card.input_shape == (28, 28, 1)
    assert card.class_names == tuple("0123456789")
    assert card.weights == "trained"
    assert (card.name, card.version) == ("", "")
    assert json.loads(json.dumps(result["card"])) == json.loads((result["folder"] / "model.json").read_text())


def test_training_learns(train, digits_tar):
    result = train(digits_tar, epochs=10.0, learning_rate=0.01)
    network = model_artifact.load(result["folder"])
    with Dataset(digits_tar) as data:
        x = to_float(np.stack([sample.pixels for sample in data.samples()]))
        accuracy = (network.predict(x, verbose=0).argmax(axis=1) == data.labels).mean()
    assert accuracy > 0.8
    assert result["metrics"]["training_accuracy"] > 0.7


@pytest.mark.parametrize(("learning_rate", "at_chance"), [(0.01, False), (1e-9, True)])
def test_training_that_ends_at_chance_says_so(train, digits_tar, mlflow_store, capsys, learning_rate, at_chance):
    result = train(digits_tar, epochs=10.0, learning_rate=learning_rate)
    assert ("training ended at chance" in capsys.readouterr().err) == at_chance
    assert (result["metrics"]["trained_accuracy"] > 0.5) != at_chance
    (run,) = mlflow_store.search_runs([mlflow_store.get_experiment_by_name("evasion").experiment_id])
    assert (run.data.tags.get("training") == "ended at chance") == at_chance


@pytest.mark.parametrize(
    ("right", "images", "most_frequent", "at_chance"),
    [(30, 200, 25, True), (38, 200, 25, False), (4, 4, 1, False), (1, 4, 1, True), (140, 200, 130, True)],
)
def test_chance_is_what_a_constant_prediction_has_right(right, images, most_frequent, at_chance):
    known = AfterTraining(right, images, most_frequent)
    assert known.at_chance == bool(known.warning) == at_chance


def test_same_seed_same_weights_and_another_seed_others(train, digits_tar):
    common = {"model_architecture": "le_net", "batch_size": 32, "epochs": 1.5}
    one, again, other = (
        weights_of(train(digits_tar, model=f"model_{place}", seed=seed, **common))
        for place, seed in enumerate((1, 1, 2))
    )
    assert same(one, again)
    assert not same(one, other)


def test_a_random_seed_is_drawn_and_recorded(train, digits_tar, mlflow_store):
    first = train(digits_tar, model="first", seed=-1)
    second = train(digits_tar, model="second", seed=-1)
    (experiment,) = (experiment for experiment in mlflow_store.search_experiments() if experiment.name == "evasion")
    seeds = [int(run.data.params["seed"]) for run in mlflow_store.search_runs([experiment.experiment_id])][::-1]
    assert len(set(seeds)) == 2
    assert min(seeds) >= 0
    again = train(digits_tar, model="again", seed=seeds[0])
    assert same(weights_of(first), weights_of(again))
    assert not same(weights_of(first), weights_of(second))


@pytest.mark.parametrize(("tag", "name"), [("v1", "lab_v1_shallow_net"), ("", "lab_shallow_net")])
def test_a_model_is_registered_under_the_seeds_name(train, digits_tar, mlflow_store, monkeypatch, tag, name):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lab")
    for version in ("1", "2"):
        card = train(digits_tar, log_model=True, register_model=True, model_tag=tag)["card"]
        assert (card["name"], card["version"]) == (name, version)
    assert [model.name for model in mlflow_store.search_registered_models()] == [name]


def test_fault_register_model_false_registers_nothing(train, digits_tar, mlflow_store):
    result = train(digits_tar, log_model=True, register_model=False, model_tag="v1")
    assert mlflow_store.search_registered_models() == []
    assert (result["card"]["name"], result["card"]["version"]) == ("", "")


def test_fault_test_metrics_are_not_overwritten_by_trainings(
    train, digits_tar, mlflow_store, monkeypatch, make_dataset, digits, tmp_path
):
    training = make_dataset(np.zeros((20, 28, 28, 1), np.uint8), class_names="0123456789")
    parent = mlflow_store.create_run(mlflow_store.create_experiment("lab", str(tmp_path / "lab")))
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.info.run_id)
    trained = train(training, validation_split=0.2)
    evaluated = infer_task.infer(
        dataset=digits_tar,
        others=[],
        model=trained["folder"],
        evaluation=tmp_path / "evaluation",
        batch_size=32,
        seed=0,
    )
    runs = {
        run.data.tags["stage"]: run.data
        for run in mlflow_store.search_runs([parent.info.experiment_id], "tags.stage != ''")
    }
    assert set(runs) == {"train", "infer"}
    assert runs["train"].metrics == pytest.approx(trained["metrics"])
    assert runs["infer"].metrics == pytest.approx(evaluated["metrics"])
    assert not set(runs["train"].metrics) & set(runs["infer"].metrics)
    assert mlflow_store.get_run(parent.info.run_id).data.metrics == {}


PLAIN = """
import sys
sys.modules["evasion"] = None  # as if this package were not installed
import numpy as np, keras
x = np.load(sys.argv[1])
for place, path in enumerate(sys.argv[2:]):
    np.save(f"found_{place}.npy", keras.saving.load_model(path).predict(x, verbose=0))
"""


@pytest.mark.parametrize(
    ("name", "defended"), [("le_net", [False, True]), pytest.param("resnet50", [False], marks=pytest.mark.slow)]
)
def test_the_file_loads_in_plain_keras(train, make_dataset, random_pixels, tmp_path, name, defended):
    pixels = random_pixels(4, INPUTS[name])
    common = {"model_architecture": name, "batch_size": 4, "max_iter": 1}
    folders = [
        train(make_dataset(pixels), model=f"model_{apply_defense}", apply_defense=apply_defense, **common)["folder"]
        for apply_defense in defended
    ]
    np.save(tmp_path / "x.npy", to_float(pixels))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    files = [folder / "model.keras" for folder in folders]
    subprocess.run([sys.executable, "-I", "-c", PLAIN, tmp_path / "x.npy", *files], cwd=elsewhere, check=True)
    for place, folder in enumerate(folders):
        expected = model_artifact.load(folder).predict(to_float(pixels), verbose=0)
        assert np.allclose(np.load(elsewhere / f"found_{place}.npy"), expected, atol=1e-5)


# What is refused.

WRONG = [
    (
        {"model_architecture": "lenet"},
        "model_architecture must be one of shallow_net, le_net, alex_net, resnet50, ",
    ),
    ({"epochs": 0.0}, "epochs must be in (0, 100,000]. Received: epochs=0.0"),
    ({"epochs": -1.0}, "epochs must be in (0, 100,000]. Received: epochs=-1.0"),
    ({"epochs": math.nan}, "epochs must be in (0, 100,000]. Received: epochs=nan"),
    ({"epochs": math.inf}, "epochs must be in (0, 100,000]. Received: epochs=inf"),
    ({"batch_size": 0}, "batch_size must be a positive integer. Received: batch_size=0"),
    ({"batch_size": 1.5}, "batch_size must be a positive integer. Received: batch_size=1.5"),
    ({"learning_rate": 0.0}, "learning_rate must be in (0, 1e+38]. Received: learning_rate=0.0"),
    ({"learning_rate": math.nan}, "learning_rate must be in (0, 1e+38]. Received: learning_rate=nan"),
    ({"optimizer": "adamw"}, "optimizer must be one of rmsprop, adam, adagrad, sgd. Received: optimizer='adamw'"),
    ({"validation_split": 1.0}, "validation_split must be in [0, 1). Received: validation_split=1.0"),
    ({"validation_split": -0.1}, "validation_split must be in [0, 1). Received: validation_split=-0.1"),
    ({"apply_defense": True, "eps": 0.0}, "eps must be in (0, 1]. Received: eps=0.0"),
    ({"apply_defense": True, "eps": 1.1}, "eps must be in (0, 1]. Received: eps=1.1"),
    ({"apply_defense": True, "eps_step": 0.0}, "eps_step must be in (0, 1]. Received: eps_step=0.0"),
    ({"apply_defense": True, "max_iter": 0}, "max_iter must be a positive integer. Received: max_iter=0"),
    ({"model_architecture": "vgg16", "weights": "/nowhere.h5"}, "weights must be imagenet, none, an existing file or"),
    (
        {"model_architecture": "vgg16", "weights_sha256": "12"},
        "weights_sha256 must be 64 hexadecimal digits or empty. ",
    ),
    (
        {"weights": "/nowhere.h5"},
        "only the classifiers of keras.applications take a weights file. Received: weights='/nowhere.h5'",
    ),
    ({"model_tag": "a/b"}, "model_tag must be of letters, digits, spaces and _ . - alone. Received: model_tag='a/b'"),
    ({"seed": -2}, "seed must be an integer in [-1, 4294967295]. Received: seed=-2"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=[str(changed) for changed, _ in WRONG])
def test_bad_parameters_are_refused_before_anything_is_read(train, tmp_path, changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(tmp_path / "nowhere", **changed)


def test_parameters_of_a_defense_that_is_off_are_not_looked_at(train, make_dataset, random_pixels):
    train(make_dataset(random_pixels(4, (28, 28, 1))), eps=0.0, eps_step=-1.0, max_iter=0)


def test_images_of_another_shape_are_refused(train, make_dataset, random_pixels, tmp_path):
    with pytest.raises(ValueError, match=r"le_net takes images of \(28, 28, 1\), but the dataset has \(32, 32, 3\)"):
        train(make_dataset(random_pixels(4, (32, 32, 3))), model_architecture="le_net")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("class_names", [("cat",), ("cat", "dog")], ids=["one class", "images of one class"])
def test_one_class_cannot_train(train, make_dataset, random_pixels, class_names):
    data = make_dataset(random_pixels(4, (28, 28, 1)), [0, 0, 0, 0], class_names)
    with pytest.raises(ValueError, match=r"Training needs images of at least two classes\. Received: cat$"):
        train(data)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_validation_split_that_leaves_no_image_on_a_side_is_refused(train, make_dataset, random_pixels, share):
    with pytest.raises(ValueError, match=f"both sides of 4. Received: validation_split={share}"):
        train(make_dataset(random_pixels(4, (28, 28, 1))), validation_split=share)


def test_training_that_diverges_is_an_error(train, digits_tar, tmp_path):
    with pytest.raises(ValueError, match=r"diverged.* Lower learning_rate. Received: learning_rate=1e\+38"):
        train(digits_tar, model_architecture="le_net", learning_rate=1e38, optimizer="sgd", epochs=3.0)
    assert not (tmp_path / "model").exists()
