"""Models that others made, each as its own user would save it, held to plain TensorFlow.

Plain TensorFlow loads the user's file and says what the model predicts, and where FGM moves each pixel.
"""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.pixels import to_float, towards
from evasion.components.common.models import artifact, class_names, classifier, endings, imported
from evasion.components.common.models.artifact import Card, ModelError
from evasion.components.common.models.ranges import RANGES
from evasion.components.common.tracking import TrackingError
from evasion.components.common.validate import ParameterError
from evasion.components.fgm import task as fgm_task
from evasion.components.infer import task as infer_task
from evasion.components.load_dataset import task as load_dataset_task
from evasion.components.load_model import task as load_task

EPS = 0.1
LOAD = {
    "model_architecture": "",
    "sha256": "",
    "input_range": "0,1",
    "image_size": "",
    "class_names": "",
    "package": "",
}
RESIZING = {"interpolation": "bilinear", "crop_to_aspect_ratio": False, "pad_to_aspect_ratio": False}
IMAGES = {"model_architecture": "", "split": "testing", "skip_unreadable": False, "load_dataset_from_mlruns": False}
IMAGES |= {"dataset_run_id": "", "dataset_tar_name": "", "dataset_name": "", "shards": 1, "batch_size": 32}
FGM = {"defenses": "", "batch_size": 32, "eps": EPS, "eps_step": 0.1, "minimal": False, "norm": "inf", "eot_samples": 1}


def take(name, folder, **changed):
    return load_task.load_model(model=folder, name=str(name), **LOAD | RESIZING | changed)


# The kinds of model.

Layers = Callable[[], list]


def network(*last, shape=(28, 28, 1), first=()):
    """A small network for digits."""
    body = [layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(2), layers.Flatten()]
    return keras.Sequential([keras.Input(shape), *first, *body, *last])


def softmax():
    return network(layers.Dense(10, activation="softmax"))


def logits():
    return network(layers.Dense(10))


def log_probabilities():
    return network(layers.Dense(10, activation="log_softmax"))


def one_probability():
    return network(layers.Dense(1, activation="sigmoid"))


def one_logit():
    return network(layers.Dense(1))


def rescaling():
    return network(layers.Dense(10, activation="softmax"), shape=(32, 32, 3), first=[layers.Rescaling(1 / 255)])


def softmax_layer():
    return network(layers.Dense(10), layers.Softmax())


def normalization():
    first = [layers.Normalization(mean=[0.2, 0.3, 0.4], variance=[0.1, 0.1, 0.1])]
    return network(layers.Dense(10, activation="softmax"), shape=(32, 32, 3), first=first)


def batch_normalization_dropout_and_noise():
    first = [layers.GaussianNoise(0.1), layers.BatchNormalization()]
    return network(layers.Dropout(0.3), layers.Dense(10), layers.Activation("softmax"), first=first)


def nested():
    inputs = keras.Input((28, 28, 1))
    return keras.Model(inputs, softmax()(layers.Dropout(0.1)(inputs)))


def any_size():
    body = [layers.Conv2D(16, 5, strides=2, activation="relu"), layers.Conv2D(16, 5, activation="relu")]
    return keras.Sequential(
        [keras.Input((None, None, 1)), *body, layers.GlobalMaxPooling2D(), layers.Dense(10, activation="softmax")]
    )


def mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        return network(layers.Dense(10), layers.Activation("softmax", dtype="float32"))
    finally:
        keras.mixed_precision.set_global_policy("float32")


def softmax_of_keras_ops():
    inputs = keras.Input((28, 28, 1))
    return keras.Model(inputs, keras.ops.softmax(logits()(inputs)))


def mean_of_softmax():
    """Its logits cannot be had."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 3, strides=2, activation="relu")(inputs)
    x = layers.Conv2D(32, 13, activation="relu")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(10, 1, activation="softmax")(x)))


def residual():
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.Add()([x, layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)])
    x = layers.LayerNormalization()(layers.AveragePooling2D(4)(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(x)))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        build: Returns the model.
        input_range: What it takes for black and white, as its user knows it.
        outputs: What must be recognised.
        options: Further parameters of `load_model`.
        from_logits: Whether an attack must take its loss from logits.
        suffix: Of its file.
    """

    build: Callable[[], keras.Model]
    input_range: str = "0,1"
    outputs: str = imported.PROBABILITIES
    options: tuple[tuple[str, str], ...] = ()
    from_logits: bool = True
    suffix: str = ".keras"

    @property
    def binary(self):
        return self.outputs in (imported.ONE_PROBABILITY, imported.ONE_LOGIT)


KINDS = [
    Kind(softmax),
    Kind(softmax, suffix=".h5"),
    Kind(softmax, "0,255"),
    Kind(softmax, "-1,1"),
    Kind(logits, outputs=imported.LOGITS),
    Kind(log_probabilities, outputs=imported.LOG_PROBABILITIES),
    Kind(one_probability, outputs=imported.ONE_PROBABILITY),
    Kind(one_logit, outputs=imported.ONE_LOGIT),
    Kind(rescaling, "0,255"),
    Kind(normalization),
    Kind(normalization, "torch"),
    Kind(normalization, "caffe"),
    Kind(softmax_layer),
    Kind(batch_normalization_dropout_and_noise),
    Kind(nested),
    Kind(any_size, options=(("image_size", "28"),)),
    Kind(mixed_precision),
    Kind(softmax_of_keras_ops),
    Kind(mean_of_softmax, from_logits=False),
    Kind(residual),
]
NAMES = [f"{kind.build.__name__} {kind.input_range}{kind.suffix}" for kind in KINDS]


def resized(pixels, shape):
    """28×28×1 digits in another shape, for training."""
    images = np.asarray(tf.image.resize(pixels, shape[:2])) if shape[:2] != (28, 28) else pixels
    return np.repeat(images, shape[2], axis=3).astype(np.float32) if shape[2] == 3 else images.astype(np.float32)


def as_user(kind, pixels):
    """8-bit pixels as the user feeds them to the model."""
    return RANGES[kind.input_range].convert(to_float(np.asarray(pixels)))


@pytest.fixture(scope="module")
def folder_of_digits(mnist, tmp_path_factory):
    """100 digits in a folder each class; of the first two classes alone, for models of two."""
    two = tmp_path_factory.mktemp("two")
    for name in "01":
        shutil.copytree(mnist / "testing" / name, two / name)
    return mnist / "testing", two


def loss_of(kind, outputs, labels):
    """The cross-entropy of a model's own outputs with labels, as its user would write it."""
    if kind.binary:
        crossentropy = keras.losses.BinaryCrossentropy(kind.outputs == imported.ONE_LOGIT, reduction="sum")
        return crossentropy(tf.cast(labels, tf.float32)[:, None], outputs)
    if kind.outputs == imported.LOG_PROBABILITIES:
        return -tf.reduce_sum(tf.gather(outputs, labels, batch_dims=1))
    logits = kind.outputs == imported.LOGITS
    return keras.losses.SparseCategoricalCrossentropy(logits, reduction="sum")(labels, outputs)


def fit(kind, model, digits):
    keras.utils.set_random_seed(1)
    pixels, labels = digits.pixels[1000:3000], digits.labels[1000:3000]
    if kind.binary:
        pixels, labels = pixels[labels < 2], labels[labels < 2]
    shape = tuple(side or 28 for side in model.input_shape[1:])
    x = RANGES[kind.input_range].convert(resized(pixels, shape) / np.float32(255))
    optimizer = keras.optimizers.Adam(0.003)
    for start in range(0, len(x) * (4 if kind.binary else 2), 64):
        at = np.arange(start, start + 64) % len(x)
        with tf.GradientTape() as tape:
            value = loss_of(kind, tf.cast(model(x[at], training=True), tf.float32), labels[at])
        optimizer.apply_gradients(
            zip(tape.gradient(value, model.trainable_weights), model.trainable_weights, strict=True)
        )


def predictions(kind, outputs):
    threshold = 0.0 if kind.outputs == imported.ONE_LOGIT else 0.5
    return (outputs[:, 0] > threshold).astype(int) if kind.binary else outputs.argmax(axis=1)


def read(tar):
    with Dataset(tar) as data:
        samples = [sample for batch in data.batches(1000) for sample in batch]
    return np.stack([sample.pixels for sample in samples]), np.array([sample.label for sample in samples])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_accuracy_and_attacked_pixels_are_those_of_plain_tensorflow(
    kind, digits, folder_of_digits, mlflow_store, tmp_path
):
    keras.utils.set_random_seed(0)
    trained = kind.build()
    fit(kind, trained, digits)
    trained.save(tmp_path / f"my model{kind.suffix}")
    plain = keras.saving.load_model(tmp_path / f"my model{kind.suffix}", compile=False)
    model, clean, attacked = (tmp_path / name for name in ("model", "clean", "attacked"))

    # From the file to an evaluation.
    take(tmp_path / f"my model{kind.suffix}", model, input_range=kind.input_range, **dict(kind.options))
    card = Card.read(model)
    folder = str(folder_of_digits[kind.binary])
    load_dataset_task.load_dataset(dataset=clean, model=model, data_dir=folder, **IMAGES | RESIZING)
    fgm_task.fgm(dataset=clean, model=model, adversarial=attacked, seed=1, **FGM)
    infer = {"others": [attacked], "evaluation": tmp_path / "evaluation", "batch_size": 32, "seed": 1}
    metrics = infer_task.infer(dataset=clean, model=model, **infer)["metrics"]

    pixels, labels = read(clean)
    assert card.outputs == kind.outputs
    assert (card.title, card.class_names_origin, card.input_shape) == ("my model", "folders", pixels.shape[1:])
    assert classifier.load(model).from_logits == kind.from_logits
    # What plain TensorFlow says of the same pixels.
    outputs = plain.predict(as_user(kind, pixels), verbose=0)
    assert metrics["accuracy"] == (predictions(kind, outputs) == labels).mean()
    assert metrics["accuracy"] > 0.7
    x = tf.constant(to_float(pixels))
    scale = RANGES[kind.input_range]
    with tf.GradientTape() as tape:
        tape.watch(x)
        ordered = x[..., ::-1] if scale.bgr else x
        values = plain(ordered * np.float32(scale.scale) + np.float32(scale.offset), training=False)
        loss = loss_of(kind, tf.cast(values, tf.float32), predictions(kind, outputs))
    expected = towards(np.asarray(tf.clip_by_value(x + EPS * tf.sign(tape.gradient(loss, x)), 0, 1)), pixels)
    # A gradient of about zero may have either sign; a softmax that is sure of itself has none in plain TensorFlow.
    sure = (outputs.max(axis=1) > 1 - 1e-6) if kind.outputs == imported.PROBABILITIES else np.zeros(len(outputs), bool)
    same = (read(attacked)[0] == expected)[~sure]
    assert same.mean() > (0.98 if kind.build is mixed_precision else 0.995)
    guesses = predictions(kind, plain.predict(as_user(kind, read(attacked)[0]), verbose=0))
    assert metrics["fgm/accuracy_under_attack"] == (guesses == labels).mean()


# What is refused, by name.


def two_inputs():
    one, two = keras.Input((28, 28, 1)), keras.Input((28, 28, 1))
    return keras.Model([one, two], layers.Dense(10)(layers.Flatten()(layers.Add()([one, two]))))


def two_outputs():
    inputs = keras.Input((28, 28, 1))
    flat = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(10)(flat), layers.Dense(2)(flat)])


REFUSED = {
    "multi-label": (lambda: network(layers.Dense(10, activation="sigmoid")), r"10 outputs are a sigmoid each \(multi-"),
    "two inputs": (two_inputs, "must have one input, of images. It has 2"),
    "two outputs": (two_outputs, "must have one output, a number for each class. It has 2"),
    "no channels": (
        lambda: keras.Sequential([keras.Input((28, 28)), layers.Flatten(), layers.Dense(10)]),
        r"must take images of shape \(images, height, width, channels\).* It takes 28×28 ",
    ),
    "channels first": (
        lambda: keras.Sequential([keras.Input((3, 28, 28)), layers.Flatten(), layers.Dense(10)]),
        "channels, the last axis. It takes 3×28×28",
    ),
    "a map": (
        lambda: keras.Sequential([keras.Input((28, 28, 1)), layers.Conv2D(10, 3)]),
        "must return a number for each class.* returns 8×26×26×10 for 8 images",
    ),
    "integers": (
        lambda: keras.Sequential([keras.Input((8, 8, 1), dtype="uint8"), layers.Rescaling(1.0), layers.Flatten()]),
        "must take floats, so that it has gradients. It takes uint8",
    ),
    "code": (
        lambda: network(layers.Dense(10), layers.Lambda(lambda x: x * 2)),
        "contains code of its own, which is not run",
    ),
    "any size without one": (any_size, r"image_size must be given, .* any size \(None×None×1\)"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_what_is_no_classifier_of_images_is_refused(what, suffix, mlflow_store, tmp_path):
    build, message = REFUSED[what]
    build().save(tmp_path / f"other{suffix}")
    with pytest.raises(ValueError, match=message):
        take(tmp_path / f"other{suffix}", tmp_path / "model")
    assert not (tmp_path / "model").exists()


PARAMETERS = [
    ({"name": "nowhere.keras"}, "model must be an existing file or a gs:// file. Received: model='nowhere.keras'"),
    ({"name": "gs://lab/model.pb"}, "model must be a .keras or .h5 file that Keras saved, or a model in MLflow."),
    ({"name": "./saved_model"}, "model must be a .keras or .h5 file that Keras saved, or a model in MLflow."),
    ({"input_range": "0..255"}, "input_range must be one of 0,1, 0,255, -1,1, caffe, torch, tf. Received: "),
    ({"image_size": "big"}, "image_size must be one side, height,width or height,width,channels"),
    ({"image_size": "28,28,2"}, "image_size must be one side, height,width or height,width,channels"),
    ({"class_names": "names.txt"}, "class_names must be an existing file or a gs:// file. Received: "),
    ({"sha256": "abc"}, "model_sha256 must be 64 hexadecimal digits or empty. Received: model_sha256='abc'"),
    ({"package": "my package"}, "model_package must be the name of an installed Python package. Received: "),
    (
        {"interpolation": "linear"},
        "interpolation must be one of nearest, bilinear, bicubic, area, lanczos3. Received: ",
    ),
    (
        {"crop_to_aspect_ratio": True, "pad_to_aspect_ratio": True},
        "crop_to_aspect_ratio and pad_to_aspect_ratio exclude each other: set one of them.",
    ),
]


@pytest.mark.parametrize(("changed", "message"), PARAMETERS, ids=[str(changed) for changed, _ in PARAMETERS])
def test_bad_parameters_are_refused_before_anything_starts(changed, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        load_task.check(**{"name": "lab"} | LOAD | RESIZING | changed)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of 8×8×1 images and three classes in a file."""
    path = tmp_path_factory.mktemp("small") / "small.keras"
    keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)]).save(path)
    return path


UNSUITABLE = [
    ({"image_size": "9"}, "image_size must be that of the model, 8×8×1, or blank. Received: 9×9×1"),
    ({"input_range": "caffe"}, "input_range must be 0,1 or 0,255 or -1,1 or tf for gray images"),
    (
        {"class_names": "a,b"},
        "class_names must be 3 different names, one for each output of the model in order. Received",
    ),
    ({"class_names": "a,b,a"}, "class_names must be 3 different names"),
    ({"sha256": 64 * "a"}, f"must have sha256 {64 * 'a'}. Received: "),
    (
        {"model_architecture": "le_net"},
        "model_architecture must be blank or that of the model: le_net takes images of ",
    ),
]


@pytest.mark.parametrize(("changed", "message"), UNSUITABLE, ids=[str(changed) for changed, _ in UNSUITABLE])
def test_parameters_that_do_not_suit_the_model_are_refused(small, changed, message, mlflow_store, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        take(small, tmp_path / "model", **changed)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("damage", ["nothing", "text", "half", "a byte"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_damaged_file_is_refused_in_one_line(damage, suffix, mlflow_store, tmp_path):
    path = tmp_path / f"broken{suffix}"
    softmax().save(path)
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 8] = bytes(8) if content[half : half + 8] != bytes(8) else b"\xff" * 8
    damaged = {"nothing": b"", "text": b"no model", "half": content[:half], "a byte": bytes(content)}
    path.write_bytes(damaged[damage])
    if damage == "a byte" and suffix == ".h5":  # HDF5 has no checksums: other weights, or another structure
        return
    with pytest.raises(ModelError, match=rf"^Keras cannot load broken\{suffix}: [^\n]+$"):
        take(path, tmp_path / "model")


# A model with classes of its own.

PACKAGE = """
import keras


@keras.saving.register_keras_serializable(package="lab")
class Own(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.flat, self.dense = keras.layers.Flatten(), keras.layers.Dense(3)

    def call(self, x):
        return keras.ops.softmax(self.dense(self.flat(x)))
"""


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """An installed package with a subclassed model, saved by another process."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "lab_layers.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    import lab_layers

    model = lab_layers.Own()
    model(np.zeros((1, 8, 8, 1), np.float32))
    model.save(tmp_path / "own.keras")
    expected = np.asarray(model(np.full((2, 8, 8, 1), 0.5, np.float32)))
    # As a process that has not imported the package.
    del sys.modules["lab_layers"]
    registered = [name for name in keras.saving.get_custom_objects() if name.startswith("lab>")]
    for name in registered:
        del keras.saving.get_custom_objects()[name]
    return tmp_path / "own.keras", expected


def test_a_subclassed_model_is_refused_with_the_way(own_package, mlflow_store, tmp_path):
    message = (
        "uses a class or function of its own.* register it with keras.saving.register_keras_serializable in a Python"
    )
    with pytest.raises(ModelError, match=message):
        take(own_package[0], tmp_path / "model")
    with pytest.raises(ModelError, match="model_package must be installed and importable: ModuleNotFoundError"):
        take(own_package[0], tmp_path / "model", package="lab_layers_of_nobody")


def test_a_subclassed_model_is_evaluated_with_its_package(own_package, mlflow_store, tmp_path):
    path, expected = own_package
    take(path, tmp_path / "model", package="lab_layers")
    card = Card.read(tmp_path / "model")
    assert (card.package, card.input_shape, card.title) == ("lab_layers", (8, 8, 1), "own")
    loaded = classifier.load(tmp_path / "model")
    assert np.allclose(loaded.probabilities(np.full((2, 8, 8, 1), 0.5, np.float32)), expected, atol=1e-6)


def test_a_package_in_the_description_of_a_model_is_not_imported_unasked(
    own_package, mlflow_store, tmp_path, monkeypatch
):
    from evasion.components.common import tracking

    take(own_package[0], tmp_path / "model", package="lab_layers")
    with tracking.stage("train", {}) as run:
        run.log_model(tmp_path / "model", register_as="own")
    with pytest.raises(
        ParameterError, match="model_package must be lab_layers, the package with the model's own classes"
    ):
        take("own", tmp_path / "again")
    assert take("own", tmp_path / "again", package="lab_layers")["version"] == "1"


# Models in MLflow.


@pytest.fixture
def logged(mlflow_store):
    """Log a model as its user does, and return the id of the run."""
    import mlflow

    def log(how, **options):
        with mlflow.start_run() as run:
            how(**options)
        return run.info.run_id

    return log


@pytest.mark.parametrize("flavour", ["keras", "tensorflow"])
def test_a_model_that_mlflow_logged_is_taken_by_every_name(flavour, logged, mlflow_store, tmp_path):
    import mlflow

    model = softmax()
    log = mlflow.keras.log_model if flavour == "keras" else mlflow.tensorflow.log_model
    run = logged(lambda: log(model, name="model", registered_model_name="my model"))
    mlflow_store.set_registered_model_alias("my model", "best", "1")
    names = [
        "my model",
        "my model/1",
        "my model@best",
        "models:/my model/1",
        "models:/my model@best",
        f"runs:/{run}/model",
    ]
    x = np.full((2, 28, 28, 1), 0.5, np.float32)
    for place, name in enumerate(names):
        card = take(name, tmp_path / f"model{place}")
        registered = ("my model", "1") if place < 5 else ("", "")
        assert (card["name"], card["version"]) == registered
        loaded = classifier.load(tmp_path / f"model{place}")
        assert np.allclose(loaded.probabilities(x), model(x), atol=1e-6)


def test_a_pickled_model_is_refused_before_it_is_downloaded(logged, mlflow_store, tmp_path, monkeypatch):
    import mlflow
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    logged(lambda: mlflow.sklearn.log_model(model, name="model", registered_model_name="pickled"))
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda **_: pytest.fail("it was downloaded"))
    with pytest.raises(TrackingError, match="pickled is stored as python_function, sklearn, which is not loaded"):
        take("pickled", tmp_path / "model")


# Names of classes.


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.txt", "cat\ndog\n\nbird\n"),
        ("names.json", json.dumps(["cat", "dog", "bird"])),
        ("class_indices.json", json.dumps({"bird": 2, "cat": 0, "dog": 1})),
        ("by_index.json", json.dumps({"2": "bird", "0": "cat", "1": "dog"})),
    ],
)
def test_class_names_are_read_from_files_as_people_have_them(file, content, tmp_path):
    (tmp_path / file).write_text(content)
    assert class_names.read(str(tmp_path / file), 3) == ("cat", "dog", "bird")


def test_class_names_are_read_from_a_list():
    assert class_names.read("cat, dog,bird", 3) == ("cat", "dog", "bird")


@pytest.mark.parametrize("content", ["[1.5]", "{", '{"a": 0, "b": 2}', "[" * 100_000, b"\xff\xfe\x00"])
def test_a_file_of_class_names_of_another_form_is_refused(content, tmp_path):
    path = tmp_path / "names.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ParameterError, match="class_names must be "):
        class_names.read(str(path), 2)


def test_a_thousand_outputs_are_those_of_imagenet(mlflow_store, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(1000)])
    model.save(tmp_path / "m.keras")
    card = take(tmp_path / "m.keras", tmp_path / "model")
    assert (card["class_names_origin"], card["class_names"][0]) == ("imagenet", "n01440764")


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ("ab", "", "The model has 3 outputs, but the dataset has 2 class folders: give class_names"),
        ("axy", "a,b,c", "The model does not know 2 of the dataset's 3 classes: x, y. It knows a, b, c; class folders"),
    ],
)
def test_folders_that_the_model_does_not_know_are_refused_before_an_image_is_read(
    small, random_pixels, make_folder, mlflow_store, tmp_path, names, given, message
):
    take(small, tmp_path / "model", class_names=given)
    images = make_folder({name: random_pixels(2, (8, 8, 1)) for name in names})
    (images / "a" / "unreadable.png").write_text("no image")
    data = tmp_path / "dataset"
    with pytest.raises(ModelError, match=message):
        load_dataset_task.load_dataset(
            dataset=data, model=tmp_path / "model", data_dir=str(images), **IMAGES | RESIZING
        )
    assert not data.exists()


# The ends of models.


def test_the_end_of_a_shared_layer_is_that_of_its_last_call():
    inputs = keras.Input((8,))
    dense = layers.Dense(8, activation="softmax")
    model = keras.Model(inputs, dense(dense(inputs)))
    ending = endings.ending_of(model)
    x = tf.constant(np.random.default_rng(0).random((3, 8), dtype=np.float32))
    assert ending.activation == endings.SOFTMAX
    assert np.allclose(tf.nn.softmax(ending.before(x)), model(x), atol=1e-6)


def test_an_artifact_keeps_only_layers_of_keras(small, mlflow_store, tmp_path):
    """So that plain Keras loads it without this package."""
    take(small, tmp_path / "model", input_range="0,255")
    model = keras.saving.load_model(Path(tmp_path / "model" / artifact.FILE))
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    assert model.output_shape == (None, 3)
