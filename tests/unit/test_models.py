"""Models as artifacts: the pretrained ones and their weights, what describes a model, init_model and load_model."""

import csv
import dataclasses
import hashlib
import importlib
import inspect
import json
import random
import re
import subprocess
import sys
from importlib import resources

import keras
import numpy as np
import pytest

from evasion.components.common.data.pixels import to_float
from evasion.components.common.models import architectures, classifier
from evasion.components.common.models import artifact as model_artifact
from evasion.components.common.models.applications import APPLICATIONS
from evasion.components.common.models.artifact import Card, ModelError
from evasion.components.common.models.ranges import RANGES
from evasion.components.common.tracking import TrackingError
from evasion.components.common.validate import ParameterError
from evasion.components.init_model import task as init_task
from evasion.components.load_model import task as load_task

# ImageNet's own names and Keras's own preprocessing.


def test_imagenet_classes_are_a_thousand_wordnet_ids_in_order():
    names = architectures.imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert list(names) == sorted(names)
    assert all(re.fullmatch(r"n\d{8}", name) for name in names)
    # Known places of ILSVRC 2012: tench, tabby, toilet tissue.
    assert (names[0], names[281], names[999]) == ("n01440764", "n02123045", "n15075141")


def test_the_table_of_imagenet_classes_has_a_name_for_each():
    table = resources.files("evasion.components.common").joinpath("imagenet_classes.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert len(rows) == 1000
    assert all(all(value.strip() for value in row.values()) for row in rows)


KERAS_OWN = {
    "resnet50": (keras.applications.ResNet50, keras.applications.resnet50.preprocess_input),
    "vgg16": (keras.applications.VGG16, keras.applications.vgg16.preprocess_input),
}


def test_every_classifier_of_keras_is_known_by_its_name():
    functions = {name for name in dir(keras.applications) if callable(getattr(keras.applications, name))}
    assert {each.name for each in APPLICATIONS.values()} == functions
    assert all(name == each.name.lower() for name, each in APPLICATIONS.items())


def test_their_sizes_and_preprocessing_are_those_of_keras(photographs):
    """The function `preprocess_input` stands in the same module of Keras as the classifier."""
    levels = photographs.astype(np.float32)
    for each in APPLICATIONS.values():
        function = getattr(keras.applications, each.name)
        module = importlib.import_module(function.__module__)
        expected = module.preprocess_input(levels.copy())
        assert np.allclose(RANGES[each.input_range].convert(to_float(photographs)), expected, atol=2e-3), each.name
        sides = re.search(r"default_size=(\d+)", inspect.getsource(function))
        if sides:
            assert each.side == int(sides[1]), each.name


def test_a_range_and_its_inverse_are_its_layer(photographs):
    pixels = to_float(photographs)
    inputs = keras.Input((224, 224, 3))
    for each in RANGES.values():
        values = each.convert(pixels)
        assert np.allclose(keras.Model(inputs, each.layer(inputs))(pixels), values, atol=1e-3)
        assert np.allclose(each.invert(values), pixels, atol=1e-5)


def weights_of(network, name):
    """The weights of the whole model that is a layer of another; its name may have a suffix."""
    (layer,) = (layer for layer in network.layers if layer.name.startswith(name))
    return layer.get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS_OWN)
def test_fault_an_imagenet_model_is_scored_with_its_preprocessing(name, photographs):
    application, preprocess = KERAS_OWN[name]
    network = architectures.build_imagenet(name, "none", "", 0)
    plain = application(weights=None)
    plain.set_weights(weights_of(network, name))
    levels = photographs.astype(np.float32)
    probabilities = network.predict(to_float(photographs), verbose=0)
    assert probabilities.shape == (4, 1000)
    assert np.allclose(probabilities, plain.predict(preprocess(levels.copy()), verbose=0), rtol=1e-4, atol=1e-6)
    # The random weights do see the difference that it makes.
    for wrong in (to_float(photographs), levels, preprocess(levels[..., ::-1].copy())):
        assert not np.allclose(probabilities, plain.predict(wrong, verbose=0), rtol=1e-2, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2", "efficientnetb0", "inceptionv3"])
def test_another_classifier_of_keras_is_the_one_that_keras_builds(name, photographs):
    network = architectures.build_imagenet(name, "none", "", 0)
    each = APPLICATIONS[name]
    plain = getattr(keras.applications, each.name)(weights=None, classifier_activation=None)
    (layer,) = (layer for layer in network.layers if isinstance(layer, keras.Model))
    plain.set_weights(layer.get_weights())
    levels = np.asarray(keras.ops.image.resize(photographs.astype(np.float32), (each.side, each.side)))
    preprocess = importlib.import_module(getattr(keras.applications, each.name).__module__).preprocess_input
    logits, has_logits = classifier.logits_of(network)
    assert has_logits
    values = logits.predict(levels / np.float32(255), verbose=0)
    expected = plain.predict(preprocess(levels.copy()), verbose=0)
    assert np.allclose(values, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert network.input_shape[1:] == architectures.ARCHITECTURES[name].input_shape


@pytest.mark.parametrize("name", KERAS_OWN)
def test_preprocessing_is_keras_own_and_does_not_train(name, photographs):
    inputs = keras.Input((224, 224, 3))
    layer = keras.Model(inputs, RANGES[APPLICATIONS[name].input_range].layer(inputs))
    expected = KERAS_OWN[name][1](photographs.astype(np.float32))
    assert np.allclose(layer(to_float(photographs)), expected, atol=1e-3)
    assert layer.trainable_weights == []


# Weights from files.


@pytest.fixture(scope="session")
def resnet50_file(resnet50, tmp_path_factory):
    """The weights of a whole ResNet50 as Keras saves them, and their hash."""
    path = tmp_path_factory.mktemp("weights") / "resnet50.weights.h5"
    resnet50.get_layer("resnet50").save_weights(path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def same(weights, others):
    return all(np.array_equal(first, second) for first, second in zip(weights, others, strict=True))


@pytest.mark.slow
def test_weights_come_from_a_local_file(resnet50, resnet50_file):
    path, sha256 = resnet50_file
    network = architectures.build_imagenet("resnet50", str(path), sha256.upper(), 0)
    assert same(weights_of(network, "resnet50"), weights_of(resnet50, "resnet50"))


@pytest.mark.slow
def test_weights_come_from_a_file_in_the_form_that_keras_publishes(resnet50, tmp_path):
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    path = tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, resnet50.get_layer("resnet50"))
    network = architectures.build_imagenet("resnet50", str(path), "", 0)
    assert same(weights_of(network, "resnet50"), weights_of(resnet50, "resnet50"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras, before it refuses the file
def test_a_base_takes_weights_without_a_top_and_keeps_them_frozen(tmp_path):
    base = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(224, 224, 3))
    base.save_weights(tmp_path / "base.weights.h5")
    network = architectures.build("resnet50", 3, str(tmp_path / "base.weights.h5"), "", 0)
    assert same(weights_of(network, "resnet50"), base.get_weights())
    assert network.get_layer("resnet50").trainable_weights == []
    assert len(network.trainable_weights) == 4  # the kernels and biases of the two new layers
    with pytest.raises(ValueError, match=r"weights must be .* ResNet50, with its top. Received: 'base.weights.h5'"):
        architectures.build_imagenet("resnet50", str(tmp_path / "base.weights.h5"), "", 0)


@pytest.mark.parametrize("file", ["text.weights.h5", "text.h5", "text.bin"])
def test_a_file_that_holds_no_weights_is_reported_by_name(tmp_path, file):
    (tmp_path / file).write_text("nothing of the kind")
    with pytest.raises(ValueError, match=f"^weights must be .* with its top. Received: '{file}'. Error of Keras"):
        architectures.build_imagenet("resnet50", str(tmp_path / file), "", 0)


@pytest.mark.parametrize(
    "build", [architectures.build_imagenet, lambda *rest: architectures.build(rest[0], 3, *rest[1:])]
)
def test_weights_with_another_hash_are_refused(tmp_path, build):
    file = tmp_path / "any.weights.h5"
    file.write_bytes(b"replaced on the way")
    with pytest.raises(ValueError, match=f"any.weights.h5' must have sha256 {64 * 'a'}. Received: [0-9a-f]{{64}}"):
        build("resnet50", str(file), 64 * "a", 0)


def test_weights_in_a_bucket_are_fetched_with_their_hash(monkeypatch):
    """How `fetch_file` downloads is tested against an emulator of Cloud Storage, with it."""
    fetched = []

    def fetch_file(uri, destination, *, sha256):
        fetched.append((uri, destination.name, sha256))
        destination.write_text("no weights")
        return destination

    monkeypatch.setattr(architectures, "fetch_file", fetch_file)
    with pytest.raises(ValueError, match=r"Received: 'base\.weights\.h5'"):
        architectures.build("resnet50", 3, "gs://lab/mirror/base.weights.h5", 64 * "b", 0)
    assert fetched == [("gs://lab/mirror/base.weights.h5", "base.weights.h5", 64 * "b")]


def test_a_seed_gives_the_same_weights_however_long_a_download_took(tmp_path, monkeypatch):
    base = tmp_path / "base.weights.h5"
    keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3)).save_weights(base)

    def fetch_file(uri, destination, *, sha256):
        random.random()  # how long Google's client waits until it tries again
        return base

    first = architectures.build("vgg16", 3, str(base), "", 7)
    monkeypatch.setattr(architectures, "fetch_file", fetch_file)
    second = architectures.build("vgg16", 3, "gs://lab/base.weights.h5", "", 7)
    assert same(first.get_weights(), second.get_weights())


# init_model.

RESIZING = {"interpolation": "bilinear", "crop_to_aspect_ratio": False, "pad_to_aspect_ratio": False}
INIT = {"model_tag": "", "model_architecture": "resnet50", "weights": "none", "weights_sha256": "", "seed": 0}
INIT |= RESIZING
LOAD = {"model_architecture": "", "sha256": "", "input_range": "0,1", "image_size": "", "class_names": ""}
LOAD |= {"package": "", **RESIZING}


def load_model(folder, name, **changed):
    return load_task.load_model(model=folder, name=name, **LOAD | changed)


@pytest.mark.slow
def test_init_model_registers_the_whole_imagenet_model(mlflow_store, tmp_path, resnet50_file, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lab")
    path, sha256 = resnet50_file
    changed = {"weights": str(path), "weights_sha256": sha256, "model_tag": "mirror"}
    description = init_task.init_model(model=tmp_path / "model", **INIT | changed)
    card = Card.read(tmp_path / "model")
    assert dataclasses.asdict(card) == description
    assert card.class_names == architectures.imagenet_classes()
    assert (card.architecture, card.input_shape, card.weights) == ("resnet50", (224, 224, 3), str(path))
    assert (card.name, card.version) == ("lab_mirror_resnet50", "1")
    loaded = load_model(tmp_path / "loaded", card.name, model_architecture="resnet50")
    assert loaded == description
    assert model_artifact.load(tmp_path / "loaded").output_shape == (None, 1000)


WRONG = [
    (
        {"model_architecture": "le_net"},
        "model_architecture must be a pretrained one, resnet50, resnet101, ",
    ),
    (
        {"weights": "/nowhere.h5"},
        "weights must be imagenet, none, an existing file or a gs:// file. Received: weights=",
    ),
    ({"weights": ""}, "weights must be imagenet, none, an existing file or a gs:// file. Received: weights=''"),
    ({"weights_sha256": 64 * "x"}, "weights_sha256 must be 64 hexadecimal digits or empty. Received: "),
    ({"model_tag": "v1@best"}, "model_tag must be of letters, digits, spaces and _ . - alone. Received: "),
    ({"seed": 2**32}, "seed must be an integer in [-1, 4294967295]. Received: seed=4294967296"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=[str(changed) for changed, _ in WRONG])
def test_init_model_refuses_bad_parameters(tmp_path, changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        init_task.init_model(model=tmp_path / "model", **INIT | changed)


def test_parameters_are_refused_before_anything_heavy_is_imported(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from evasion.components.init_model import task\n"
        "try:\n"
        f"    task.init_model(model=pathlib.Path('model'), **{INIT | {'weights': '/nowhere.h5'}!r})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "assert not {'tensorflow', 'keras', 'mlflow', 'art'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
    assert done.stdout.startswith(b"weights must be imagenet, none, an existing file")
    assert list(tmp_path.iterdir()) == []


# The artifact.


@pytest.fixture
def copied(le_net_artifact, tmp_path):
    """A model artifact to be damaged."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in ("model.keras", "model.json"):
        (folder / name).write_bytes((le_net_artifact / name).read_bytes())
    return folder


def test_a_card_reads_back_as_it_was_written(copied):
    card = dataclasses.replace(Card.read(copied), name="lab_le_net", version="3")
    card.write(copied)
    assert Card.read(copied) == card
    assert card.sha256 == hashlib.sha256((copied / "model.keras").read_bytes()).hexdigest()
    assert {path.name for path in copied.iterdir()} == {"model.keras", "model.json"}


def changed(**fields):
    def change(folder):
        card = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(card | fields))

    return change


def without(field):
    def change(folder):
        card = json.loads((folder / "model.json").read_text())
        del card[field]
        (folder / "model.json").write_text(json.dumps(card))

    return change


def rehash(folder):
    changed(sha256=hashlib.sha256((folder / "model.keras").read_bytes()).hexdigest())(folder)


def flip(folder):
    content = bytearray((folder / "model.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.keras").write_bytes(content)


DAMAGES = {
    "no card": (lambda folder: (folder / "model.json").unlink(), "has no model.json .* Register it with `train`"),
    "no model": (lambda folder: (folder / "model.keras").unlink(), "The model has no model.keras"),
    "one bit": (
        flip,
        "model.keras has sha256 [0-9a-f]{64}, but model.json says [0-9a-f]{64}: it is damaged",
    ),
    "cut short": (
        lambda folder: (folder / "model.json").write_text('{"architecture": "le'),
        "does not have the expected form",
    ),
    "a list": (lambda folder: (folder / "model.json").write_text("[]"), "does not have the expected form"),
    "bytes": (lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe"), "does not have the expected form"),
    "shape": (changed(input_shape=[28, 28]), "does not have the expected form"),
    "classes": (changed(class_names=None), "does not have the expected form"),
    "unknown field": (changed(more=1), "does not have the expected form"),
    "missing field": (without("architecture"), "does not have the expected form"),
    "missing hash": (without("sha256"), "does not have the expected form"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_refused(copied, damage):
    change, message = DAMAGES[damage]
    change(copied)
    with pytest.raises(ModelError, match=message):
        Card.read(copied)


def test_a_file_that_keras_cannot_load_is_refused(copied):
    (copied / "model.keras").write_bytes(b"no model")
    rehash(copied)
    with pytest.raises(ModelError, match=r"Keras cannot load model\.keras"):
        model_artifact.load(copied)


def test_a_model_that_carries_code_is_refused(copied):
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(copied / "model.keras")
    rehash(copied)
    with pytest.raises(ModelError, match=r"model\.keras contains code of its own, which is not run"):
        model_artifact.load(copied)


def test_a_model_that_is_not_what_its_card_says_is_refused(copied):
    inputs = keras.Input((14, 14, 1))
    keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs))).save(copied / "model.keras")
    rehash(copied)
    with pytest.raises(ModelError, match=r"return 10 probabilities, as model\.json says\. It takes 14×14×1"):
        model_artifact.load(copied)


def test_classes_are_matched_by_name():
    card = Card(architecture="le_net", input_shape=(28, 28, 1), class_names=("a", "b", "c"), weights="", sha256="")
    assert card.indices_of(("c", "a"), (28, 28, 1)).tolist() == [2, 0]
    assert card.indices_of((), (28, 28, 1)).tolist() == []
    with pytest.raises(
        ModelError, match=r"The model does not know 2 of the dataset's 3 classes: x, y. It knows a, b, c;"
    ):
        card.indices_of(("x", "b", "y"), (28, 28, 1))
    with pytest.raises(
        ModelError, match="images are 28×28×3, but the model le_net takes 28×28×1: load the images for this model"
    ):
        card.indices_of(("a",), (28, 28, 3))


def test_a_failed_save_leaves_nothing(tmp_path):
    class Full:
        def save(self, path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        model_artifact.save(Full(), tmp_path, architecture="le_net")
    assert list(tmp_path.iterdir()) == []


def test_a_model_appears_with_its_description(tmp_path, monkeypatch):
    """An interrupt between the two left a model that nothing could read."""

    def interrupted(_):
        raise KeyboardInterrupt

    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    monkeypatch.setattr(model_artifact, "sha256_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model_artifact.save(network, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# load_model.


@pytest.fixture
def registered(mlflow_store, le_net_artifact):
    """A LeNet registered twice as lab_le_net, version 1 under the alias best."""
    from evasion.components.common import tracking

    with tracking.stage("train", {}) as run:
        for _ in range(2):
            run.log_model(le_net_artifact, register_as="lab_le_net")
    mlflow_store.set_registered_model_alias("lab_le_net", "best", "1")
    return "lab_le_net"


def test_load_model_brings_the_file_and_its_description(registered, le_net_artifact, tmp_path, mlflow_store):
    for name, version in (("lab_le_net", "2"), ("lab_le_net@best", "1")):
        folder = tmp_path / version
        description = load_model(folder, name, model_architecture="le_net")
        card = Card.read(folder)
        assert dataclasses.asdict(card) == description
        assert (card.name, card.version) == ("lab_le_net", version)
        assert card.class_names == tuple("0123456789")
        assert (folder / "model.keras").read_bytes() == (le_net_artifact / "model.keras").read_bytes()
        assert {path.name for path in folder.iterdir()} == {"model.keras", "model.json"}
    runs = mlflow_store.search_runs(
        [mlflow_store.get_experiment_by_name("evasion").experiment_id], "tags.stage = 'load_model'"
    )
    assert {run.data.params["model_version"] for run in runs} == {"1", "2"}
    assert {run.data.params["model_sha256"] for run in runs} == {card.sha256}


def test_load_model_refuses_another_architecture(registered, tmp_path):
    with pytest.raises(
        ModelError, match=r"model_architecture must be that of the model, le_net. Received: .*'alex_net'"
    ):
        load_model(tmp_path / "model", registered, model_architecture="alex_net")
    assert not (tmp_path / "model").exists()


def test_a_model_with_a_description_takes_no_other(registered, tmp_path):
    with pytest.raises(ParameterError, match=r"input_range, class_names must be omitted: the model lab_le_net has"):
        load_model(tmp_path / "model", registered, input_range="0,255", class_names="a,b", image_size="")
    assert not (tmp_path / "model").exists()


def test_how_images_are_resized_is_kept_or_changed(registered, tmp_path):
    assert load_model(tmp_path / "kept", registered)["interpolation"] == "bilinear"
    card = load_model(tmp_path / "changed", registered, interpolation="area", pad_to_aspect_ratio=True)
    assert (card["interpolation"], card["pad_to_aspect_ratio"], card["crop_to_aspect_ratio"]) == ("area", True, False)


def test_load_model_refuses_a_model_that_is_not_there(mlflow_store, tmp_path):
    with pytest.raises(TrackingError, match="no model is registered: run `train` or `init_model` first"):
        load_model(tmp_path / "model", "lab_le_net")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "architecture", "message"),
    [
        ("", "le_net", "model must be given as a name in MLflow, name/version, name@alias, models:/"),
        (" ", "le_net", "model must be given"),
        ("lab", "lenet", "model_architecture must be one of shallow_net, le_net, alex_net, resnet50, "),
    ],
)
def test_load_model_refuses_bad_parameters(tmp_path, name, architecture, message):
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model", name, model_architecture=architecture)
