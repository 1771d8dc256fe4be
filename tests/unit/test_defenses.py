"""The three defenses: ART is the oracle of what they do to pixels; the rest is what this package promises of them."""

import contextlib
import csv
import io
import json
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from scipy.ndimage import median_filter
from scipy.spatial.distance import cosine

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.writer import write_all
from evasion.components.common.defenses.transformations import generator
from evasion.components.common.tracking import TrackingError
from evasion.components.gaussian_augmentation.task import gaussian_augmentation, transformation
from evasion.components.jpeg_compression.task import jpeg_compression
from evasion.components.spatial_smoothing import task as smoothing
from evasion.components.spatial_smoothing.task import spatial_smoothing

GRAY, COLOUR = (28, 28, 1), (20, 24, 3)
DEFENSES = {
    "spatial_smoothing": (spatial_smoothing, {"window_size": 3}),
    "jpeg_compression": (jpeg_compression, {"quality": 30, "channels_first": False}),
    "gaussian_augmentation": (
        gaussian_augmentation,
        {"perform_data_augmentation": False, "ratio": 1.0, "sigma": 0.1},
    ),
}
every_defense = pytest.mark.parametrize("stage", DEFENSES)


@pytest.fixture
def defend(tmp_path, mlflow_store):
    """Run a defense by its name and return the defended datasets' path and the numbers that the task returned."""

    def run(stage, source, output="defended.tar", others=(), **parameters):
        task, defaults = DEFENSES[stage]
        common = {"apply_fit": False, "apply_predict": True, "seed": 1}
        path = tmp_path / output
        arguments = {**defaults, **common, **parameters}
        return path, task(dataset=source, others=list(others), defended=path, **arguments)

    return run


def content(path):
    """The images, names and rows in a tar, read without the package under test."""
    with tarfile.open(path, "r:") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    names = list(files)
    assert names[0].endswith("/dataset.json")
    assert names[-1].endswith("/samples.csv")
    images = {}
    for name in names[1:-1]:
        pixels = np.asarray(Image.open(io.BytesIO(files[name])))
        images[name.partition("/")[2]] = pixels.reshape(*pixels.shape[:2], -1)
    rows = list(csv.DictReader(io.StringIO(files[names[-1]].decode(), newline="")))
    return json.loads(files[names[0]]), images, rows


def test_a_defense_that_cannot_be_tracked_leaves_nothing(defend, make_dataset, random_pixels, monkeypatch, tmp_path):
    source = make_dataset(random_pixels(4, GRAY))
    before = set(tmp_path.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="cannot be used"):
        defend("spatial_smoothing", source)
    assert set(tmp_path.iterdir()) == before


def stacked(path):
    return np.stack(list(content(path)[1].values()))


def through_floats(preprocessor, pixels):
    """What ART makes of 8-bit images: floats in, floats out, and back to the nearest level.

    ART's JPEG compression truncates floats to levels, and level / 255 * 255 may fall just below the level: half
    a level more keeps it where it is.
    """
    truncated = type(preprocessor).__name__ == "JpegCompression"
    x = (pixels + np.float32(0.5 if truncated else 0)) / np.float32(255)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ART calls Pillow in a way that Pillow warns of
        defended, _ = preprocessor(x)
    return np.rint(defended * 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [GRAY, COLOUR], ids=["gray", "colour"])
@pytest.mark.parametrize("window_size", [1, 2, 3, 4, 5, 6, 9, 15, 40, 41])
def test_smoothing_is_arts(defend, make_dataset, random_pixels, shape, window_size):
    from art.defences.preprocessor import SpatialSmoothing

    pixels = random_pixels(4, shape)
    path, _ = defend("spatial_smoothing", make_dataset(pixels), window_size=window_size)
    expected = through_floats(SpatialSmoothing(window_size=window_size, clip_values=(0, 1)), pixels)
    np.testing.assert_array_equal(stacked(path), expected)
    assert (expected == pixels).all() == (window_size == 1)


def test_an_even_window_reaches_to_the_top_left_and_takes_the_upper_median(defend, make_dataset):
    pixels = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8).reshape(1, 3, 3, 1)
    path, _ = defend("spatial_smoothing", make_dataset(pixels, class_names=["cat"]), window_size=2)
    # In the middle 10, 20, 40, 50 give 40; at the top left four times 10.
    assert stacked(path)[0, :, :, 0].tolist() == [[10, 20, 30], [40, 40, 50], [70, 70, 80]]


def test_both_medians_agree_on_every_size():
    """Odd windows go through OpenCV, unless they reach beyond the image's other side."""
    random = np.random.default_rng(0)
    for _ in range(200):
        shape = (*random.integers(1, 20, 2), random.choice([1, 3]))
        window = int(random.choice([3, 5, 7, 9, 11, 21]))
        image = random.integers(0, 256, shape, dtype=np.uint8)
        expected = median_filter(image, size=(window, window, 1), mode="reflect")
        defended = smoothing.transformation(window_size=window).apply(image, random)
        np.testing.assert_array_equal(defended, expected)
    white = np.full((130, 130, 1), 255, np.uint8)
    for window in (255, 257):
        np.testing.assert_array_equal(smoothing.transformation(window_size=window).apply(white, random), white)


@pytest.mark.parametrize("shape", [GRAY, COLOUR, (4, 1, 1), (1, 4, 1), (1, 1, 3), (1, 1, 1), (224, 224, 3)], ids=str)
@pytest.mark.parametrize("sigma", [0.01, 0.1, 3.0])
def test_noise_is_that_of_floats_but_for_rounding(random_pixels, shape, sigma):
    (pixels,) = random_pixels(1, shape)
    defended = transformation(sigma=sigma).of(pixels, 1, "cat/0.png")
    drawn = generator(1, "cat/0.png").standard_normal(shape, dtype=np.float32)
    expected = np.rint(255 * np.clip(pixels / 255 + sigma * drawn.astype(float), 0, 1))
    assert defended.shape == shape
    assert defended.dtype == np.uint8
    assert np.abs(defended - expected).max() <= 1
    assert (defended != expected).mean() < 1e-4


@pytest.mark.parametrize("shape", [GRAY, COLOUR, (37, 50, 3), (224, 224, 3)], ids=str)
@pytest.mark.parametrize("quality", [1, 50, 75, 95, 100])
def test_jpeg_is_arts(defend, make_dataset, random_pixels, shape, quality):
    from art.defences.preprocessor import JpegCompression

    pixels = random_pixels(4, shape)
    source = make_dataset(pixels)
    path, _ = defend("jpeg_compression", source, quality=quality)
    oracle = JpegCompression(clip_values=(0, 1), quality=quality)
    expected = through_floats(oracle, pixels)
    assert (expected != pixels).any()
    np.testing.assert_array_equal(stacked(path), expected)

    first, _ = defend("jpeg_compression", source, "channels_first.tar", quality=quality, channels_first=True)
    oracle = JpegCompression(clip_values=(0, 1), quality=quality, channels_first=True)
    expected = through_floats(oracle, pixels.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(stacked(first), expected)
    np.testing.assert_array_equal(stacked(first), stacked(path))


class TestGaussian:
    """ART's noise comes from NumPy's global state, so what is compared is its distribution."""

    SIGMA = 0.05

    @pytest.fixture
    def middle_gray(self):
        return np.full((40, *GRAY), 128, dtype=np.uint8)  # far enough from 0 and 255 that no noise is clipped

    def noise(self, path):
        return (stacked(path).astype(float) - 128) / 255

    def test_noise_is_normal_with_the_asked_deviation(self, defend, make_dataset, middle_gray):
        path, _ = defend("gaussian_augmentation", make_dataset(middle_gray), sigma=self.SIGMA)
        noise = self.noise(path)
        standard_error = self.SIGMA / np.sqrt(noise.size)
        assert abs(noise.mean()) < 4 * standard_error
        assert noise.std() == pytest.approx(np.hypot(self.SIGMA, 1 / 255 / np.sqrt(12)), rel=0.02)
        spread = np.random.default_rng(0).uniform(-0.5, 0.5, noise.shape) / 255  # undoes the steps of 8 bits
        assert stats.kstest((noise + spread).ravel() / noise.std(), "norm").pvalue > 0.001

    def test_noise_is_distributed_as_arts(self, defend, make_dataset, random_pixels):
        from art.defences.preprocessor import GaussianAugmentation

        pixels = random_pixels(40, COLOUR)
        path, _ = defend("gaussian_augmentation", make_dataset(pixels), sigma=0.2)
        oracle = GaussianAugmentation(sigma=0.2, augmentation=False, clip_values=(0, 1))
        state = np.random.get_state()  # noqa: NPY002 - ART has no other
        np.random.seed(0)  # noqa: NPY002
        expected = through_floats(oracle, pixels)
        np.random.set_state(state)  # noqa: NPY002
        smoothed = stacked(path)
        for level in (smoothed, expected):
            assert np.mean(level == 0) > 0.05  # clipped at both ends
            assert np.mean(level == 255) > 0.05
        moved = [image.astype(int) - pixels for image in (smoothed, expected)]
        assert stats.ks_2samp(moved[0].ravel(), moved[1].ravel()).pvalue > 0.001

    def test_no_two_images_pixels_or_channels_share_their_noise(self, defend, make_dataset):
        same = np.full((20, *COLOUR), 128, dtype=np.uint8)
        path, _ = defend("gaussian_augmentation", make_dataset(same), sigma=self.SIGMA)
        noise = self.noise(path)
        for rows in (noise.reshape(20, -1), noise.reshape(-1, 3).T):
            between = np.corrcoef(rows) - np.eye(len(rows))
            assert np.abs(between).max() < 5 / np.sqrt(rows.shape[1])

    def test_fault_unseeded_noise(self, defend, make_dataset, random_pixels):
        """The original drew its noise from NumPy's global state, whatever the seed."""
        source = make_dataset(random_pixels(6, GRAY))
        np.random.seed(0)  # noqa: NPY002 - the fault is about this very state
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        outputs = [
            defend("gaussian_augmentation", source, f"{place}.tar", seed=seed)[0]
            for place, seed in enumerate((7, 7, 8))
        ]
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
        assert outputs[0].read_bytes() == outputs[1].read_bytes()
        assert (stacked(outputs[0]) != stacked(outputs[2])).any()

    def test_a_drawn_seed_is_recorded_and_gives_the_same_again(self, defend, make_dataset, random_pixels, mlflow_store):
        source = make_dataset(random_pixels(6, GRAY))
        drawn = [defend("gaussian_augmentation", source, f"{place}.tar", seed=-1)[0] for place in (1, 2)]
        seeds = [content(path)[0]["provenance"][-1]["seed"] for path in drawn]
        assert all(isinstance(seed, int) and seed >= 0 for seed in seeds)
        assert seeds[0] != seeds[1]
        again, _ = defend("gaussian_augmentation", source, "again.tar", seed=seeds[0])
        assert again.read_bytes() == drawn[0].read_bytes()
        experiment = mlflow_store.get_experiment_by_name("evasion")
        logged = [run.data.params["seed"] for run in mlflow_store.search_runs([experiment.experiment_id])]
        assert sorted(logged) == sorted(str(seed) for seed in (*seeds, seeds[0]))

    @pytest.mark.parametrize(("ratio", "added"), [(0, 0), (0.5, 10), (0.49, 9), (1, 20)])
    def test_augmentation_keeps_the_originals_and_adds_the_share(
        self, defend, make_dataset, random_pixels, ratio, added
    ):
        pixels = random_pixels(20, GRAY)
        source = make_dataset(pixels, [0] * 15 + [2] * 5, ["a", "b", "c"], split="training")
        path, _ = defend(
            "gaussian_augmentation", source, perform_data_augmentation=True, ratio=ratio, sigma=0.3, apply_fit=True
        )
        header, images, rows = content(path)
        assert sum(header["counts"]) == len(images) == 20 + added
        assert header["counts"][1] == 0
        originals = {row["source"]: image for row, image in zip(rows, images.values(), strict=True) if same(row)}
        copies = {row["source"]: image for row, image in zip(rows, images.values(), strict=True) if not same(row)}
        assert len(originals) == 20
        assert len(copies) == added  # each of another image
        with Dataset(source) as before:
            for sample in before.samples():
                np.testing.assert_array_equal(originals[sample.source], sample.pixels)
        assert all(row["label"] == row["source"].partition("/")[0] for row in rows)

    def test_without_augmentation_the_ratio_does_not_count(self, defend, make_dataset, random_pixels):
        source = make_dataset(random_pixels(6, GRAY))
        paths = [defend("gaussian_augmentation", source, f"{ratio}.tar", ratio=ratio)[0] for ratio in (0, 0.5, 1)]
        assert len({stacked(path).tobytes() for path in paths}) == 1
        assert len(stacked(paths[0])) == 6

    def test_a_copy_never_takes_the_name_of_another_image(self, defend, tmp_path, make_folder, random_pixels):
        from evasion.components.load_dataset.pack import pack

        folder = make_folder({"cat": random_pixels(4, GRAY)})
        for place, name in enumerate(("a", "a_1", "a_1_1", "a_2")):
            (folder / "cat" / f"{place:04d}.png").rename(folder / "cat" / f"{name}.png")
        pack(tmp_path / "loaded.tar", str(folder), GRAY, "testing", skip_unreadable=False)
        path, _ = defend("gaussian_augmentation", tmp_path / "loaded.tar", perform_data_augmentation=True)
        assert len(content(path)[1]) == 8  # a dictionary: of the same name there would be one


def same(row):
    return float(row["l_1_norm"]) == 0


@every_defense
@pytest.mark.parametrize("split", ["training", "testing"])
@pytest.mark.parametrize("apply_fit", [False, True])
@pytest.mark.parametrize("apply_predict", [False, True])
def test_fault_apply_fit_and_apply_predict_without_effect(
    defend, make_dataset, random_pixels, stage, split, apply_fit, apply_predict
):
    """ART's preprocessors, called directly as the original did, change images whatever these two say."""
    pixels = random_pixels(4, GRAY)
    source = make_dataset(pixels, split=split)
    path, numbers = defend(stage, source, apply_fit=apply_fit, apply_predict=apply_predict)
    applies = apply_fit if split == "training" else apply_predict
    header, images, _ = content(path)
    changed = [(after != before).any() for after, before in zip(images.values(), pixels, strict=True)]
    assert changed == [applies] * 4
    assert header["provenance"][-1]["applied"] is applies
    assert header["split"] == split
    assert (numbers["l_2_norm_max"] > 0) is applies


@every_defense
def test_augmentation_and_other_parameters_do_nothing_where_the_defense_does_not_apply(
    defend, make_dataset, random_pixels, stage
):
    source = make_dataset(random_pixels(4, GRAY))
    path, _ = defend(
        stage, source, apply_predict=False, **({"perform_data_augmentation": True} if stage[0] == "g" else {})
    )
    assert len(content(path)[1]) == 4


@every_defense
def test_names_labels_order_columns_and_provenance_are_kept(defend, make_dataset, random_pixels, stage):
    fields = [{"clean_prediction": f"class, {place}", "l_1_norm": "99"} for place in range(5)]
    source = make_dataset(random_pixels(5, GRAY), [0, 0, 2, 2, 3], ["a", "b", "c", "d", "e"], fields=fields)
    path, _ = defend(stage, source)
    header, images, rows = content(path)
    before, parents, _ = content(source)
    assert [name.replace("/def_", "/") for name in images] == list(parents)
    assert all("/def_" in name for name in images)
    assert [row["path"] for row in rows] == list(images)
    assert [row["source"] for row in rows] == list(parents)
    assert [row["label"] for row in rows] == [name.partition("/")[0] for name in parents]
    assert [row["clean_prediction"] for row in rows] == [row["clean_prediction"] for row in fields]
    assert all(row["l_1_norm"] != "99" for row in rows)  # the parent's distances are not this dataset's
    for kept in ("class_names", "counts", "image_shape", "split"):
        assert header[kept] == before[kept]
    assert header["name"] == stage
    assert header["prefix"] == "def_"
    assert header["provenance"][:-1] == before["provenance"]
    entry = header["provenance"][-1]
    assert (entry["stage"], entry["kind"], entry["seed"]) == (stage, "defense", 1)
    assert entry["parameters"].items() >= DEFENSES[stage][1].items()
    with Dataset(source) as opened:
        assert entry["parent_sha256"] == opened.sha256


def test_a_defense_of_a_defended_dataset_adds_its_prefix_and_entry(defend, make_dataset, random_pixels):
    first, _ = defend("jpeg_compression", make_dataset(random_pixels(3, GRAY)), "first.tar")
    second, _ = defend("spatial_smoothing", first, "second.tar")
    header, images, rows = content(second)
    assert list(images) == ["cat/def_def_0000.png", "cat/def_def_0001.png", "dog/def_def_0002.png"]
    assert header["prefix"] == "def_def_"
    assert [entry["stage"] for entry in header["provenance"]] == [
        "load_dataset",
        "jpeg_compression",
        "spatial_smoothing",
    ]
    assert rows[0]["source"] == "cat/def_0000.png"


@every_defense
@pytest.mark.parametrize("shape", [GRAY, COLOUR], ids=["gray", "colour"])
def test_fault_distances_of_other_images_than_those_saved(defend, make_dataset, random_pixels, stage, shape):
    """The original measured float images before they were stretched, cut to 8 bits and saved as JPEG."""
    pixels = random_pixels(5, shape)
    pixels[0] = 0
    path, numbers = defend(stage, make_dataset(pixels, class_names=["cat"]))
    _, images, rows = content(path)
    columns = {
        name: [] for name in ("l_1_norm", "l_2_norm", "l_infinity_norm", "cosine_similarity", "wasserstein_distance")
    }
    for before, after, row in zip(pixels, images.values(), rows, strict=True):
        a, b = before.ravel() / 255, after.ravel() / 255
        difference = np.abs(a - b)
        expected = {
            "l_1_norm": difference.sum(),
            "l_2_norm": np.sqrt((difference**2).sum()),
            "l_infinity_norm": difference.max(),
            "cosine_similarity": 1 - cosine(a, b) if a.any() and b.any() else float(a.any() == b.any()),
            "wasserstein_distance": stats.wasserstein_distance(a, b),
        }
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-9, abs=1e-12), name
            columns[name].append(value)
    for name, values in columns.items():
        quarters = np.percentile(values, [25, 75])
        expected = {
            "mean": np.mean(values),
            "median": np.median(values),
            "stdev": np.std(values),
            "iqr": quarters[1] - quarters[0],
            "min": min(values),
            "max": max(values),
        }
        for statistic, value in expected.items():
            assert numbers[f"{name}_{statistic}"] == pytest.approx(value, rel=1e-9, abs=1e-9), f"{name}_{statistic}"
    assert len(numbers) == 5 * 6


def test_fault_contrast_stretched_images(defend, make_dataset):
    """The original saved through matplotlib, which stretched the darkest pixel to 0 and the brightest to 255."""
    faint = np.tile(np.arange(100, 128, dtype=np.uint8), (2, 28, 1))[..., None]
    path, _ = defend("spatial_smoothing", make_dataset(faint), window_size=1)
    np.testing.assert_array_equal(stacked(path), faint)


def test_fault_images_saved_as_jpeg(defend, make_dataset):
    """The original saved attacked images as JPEG, which is a defense before the defense."""
    noise = np.random.default_rng(0).integers(0, 256, (3, *COLOUR), dtype=np.uint8)
    path, _ = defend("spatial_smoothing", make_dataset(noise), window_size=1)
    np.testing.assert_array_equal(stacked(path), noise)
    assert all(name.endswith(".png") for name in content(path)[1])


@every_defense
@pytest.mark.parametrize("images", [1, 31, 32, 33, 129])
def test_fault_last_batch_dropped(defend, make_dataset, random_pixels, stage, images):
    path, _ = defend(stage, make_dataset(random_pixels(images, (4, 4, 1))))
    with Dataset(path) as defended:
        assert len(defended) == len(list(defended.samples())) == images


@every_defense
def test_fault_labels_shifted_by_a_missing_class(defend, make_dataset, random_pixels, stage):
    """The original numbered the existing class folders, so a class without images moved those after it."""
    path, _ = defend(stage, make_dataset(random_pixels(4, GRAY), [1, 1, 3, 3], ["a", "b", "c", "d", "e"]))
    with Dataset(path) as defended:
        assert defended.labels.tolist() == [1, 1, 3, 3]
        assert defended.header.class_names == ("a", "b", "c", "d", "e")
        assert defended.header.counts == (0, 2, 0, 2, 0)


AIMS = {"fgm": None, **{f"fgm_aware_of_{stage}": stage for stage in DEFENSES}}


def attacked(clean, path, names=tuple(AIMS)):
    """A tar as an attack leaves it: the images of an oblivious attacker, and of those who know a defense."""
    with Dataset(clean) as before:
        samples = list(before.samples())

        def dataset(name, shift):
            aim = AIMS[name] and {"stage": AIMS[name], "parameters": {}}
            entry = {"stage": "fgm", "kind": "attack", "parameters": {}, "seed": 1, "defense": aim}
            header = before.header.derive(name=name, prefix="adv_", entry={**entry, "parent_sha256": before.sha256})
            moved = (
                replace(sample, stem=f"adv_{sample.stem}", pixels=sample.pixels + np.uint8(shift)) for sample in samples
            )
            return header, moved

        write_all(path, [dataset(name, 7 * place) for place, name in enumerate(names, 1)])
    return path


def alone(tar, name, path):
    with Dataset(tar, name) as one:
        one.copy_to(path)
    return path


@every_defense
def test_several_datasets_are_defended_as_if_each_were_alone(
    defend, make_dataset, random_pixels, tmp_path, mlflow_store, stage
):
    clean = make_dataset(random_pixels(9, GRAY))
    tar = attacked(clean, tmp_path / "fgm.tar")
    path, numbers = defend(stage, clean, others=[tar])
    # What is aimed at another defense is left to that one.
    expected = {
        stage: clean,
        f"{stage}_of_fgm": alone(tar, "fgm", tmp_path / "oblivious.tar"),
        f"{stage}_of_fgm_aware_of_{stage}": alone(tar, f"fgm_aware_of_{stage}", tmp_path / "aware.tar"),
    }
    datasets = Dataset.all_in(path)
    assert [dataset.header.name for dataset in datasets] == list(expected)
    for place, dataset in enumerate(datasets):
        name = dataset.header.name
        single, same_numbers = defend(stage, expected[name], f"{place}.tar")
        with dataset, Dataset(single) as other:
            assert replace(dataset.header, name=stage) == other.header
            for actual, expected_sample in zip(dataset.samples(), other.samples(), strict=True):
                np.testing.assert_array_equal(actual.pixels, expected_sample.pixels)
                assert (actual.label, actual.stem, actual.source) == (
                    expected_sample.label,
                    expected_sample.stem,
                    expected_sample.source,
                )
                assert actual.fields == expected_sample.fields
        prefix = f"{name}/" if place else ""
        assert {key: numbers[f"{prefix}{key}"] for key in same_numbers} == same_numbers
    assert len(numbers) == 3 * 5 * 6
    experiment = mlflow_store.get_experiment_by_name("evasion")
    runs = mlflow_store.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    assert runs[0].info.run_name == stage
    assert runs[0].data.metrics == pytest.approx(numbers)
    logged = mlflow_store.download_artifacts(runs[0].info.run_id, f"{stage}.tar")
    assert Path(logged).read_bytes() == path.read_bytes()
    # Three different datasets, so that dataset taken for another would be seen.
    with contextlib.ExitStack() as stack:
        assert len({stack.enter_context(dataset).pixels(0).tobytes() for dataset in datasets}) == 3


def test_the_first_tar_may_hold_several(defend, make_dataset, random_pixels, tmp_path):
    clean = make_dataset(random_pixels(4, GRAY))
    tar = attacked(clean, tmp_path / "fgm.tar")
    path, _ = defend("jpeg_compression", tar, others=[clean])
    assert [dataset.header.name for dataset in Dataset.all_in(path)] == [
        "jpeg_compression",
        "jpeg_compression_of_fgm_aware_of_jpeg_compression",
        "jpeg_compression_of_load_dataset",
    ]


def test_a_dataset_aimed_at_another_defense_is_defended_where_it_is_alone(
    defend, make_dataset, random_pixels, tmp_path
):
    clean = make_dataset(random_pixels(4, GRAY))
    tar = attacked(clean, tmp_path / "fgm.tar", ["fgm_aware_of_jpeg_compression"])
    path, _ = defend("spatial_smoothing", tar)
    header, images, _ = content(path)
    assert [entry["stage"] for entry in header["provenance"]] == ["load_dataset", "fgm", "spatial_smoothing"]
    assert len(images) == 4


def test_datasets_of_one_name_are_not_defended_into_one_tar(defend, make_dataset, random_pixels, tmp_path):
    clean = make_dataset(random_pixels(4, GRAY))
    with pytest.raises(ValueError, match=r"different names. Received twice: jpeg_compression_of_load_dataset"):
        defend("jpeg_compression", clean, others=[clean, clean])
    assert not [path for path in tmp_path.iterdir() if "defended" in path.name]


def test_one_damaged_dataset_of_several_leaves_none(defend, make_dataset, random_pixels, tmp_path):
    clean = make_dataset(random_pixels(4, GRAY))
    tar = attacked(clean, tmp_path / "fgm.tar")
    data = bytearray(tar.read_bytes())
    data[data.index(b"IDAT", data.index(b"fgm_aware_of_jpeg")) + 20] ^= 0xFF
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"fgm_aware_of_jpeg_compression/cat/adv_0000\.png.*corrupt"):
        defend("jpeg_compression", clean, others=[tar])
    assert not [path for path in tmp_path.iterdir() if "defended" in path.name]
    path, _ = defend("spatial_smoothing", clean, others=[tar])  # which leaves the damaged one alone
    assert len(Dataset.all_in(path)) == 3


def test_every_dataset_is_augmented_by_its_own_share(defend, make_dataset, random_pixels):
    few = make_dataset(random_pixels(6, GRAY))
    many = make_dataset(random_pixels(20, (8, 8, 3), seed=1), split="training", name="many")
    idle = make_dataset(random_pixels(5, GRAY, seed=2), split="testing", name="idle")
    settings = {"perform_data_augmentation": True, "ratio": 0.5, "apply_fit": True, "apply_predict": False}
    path, _ = defend("gaussian_augmentation", many, others=[idle], **settings)
    datasets = Dataset.all_in(path)
    assert [len(dataset) for dataset in datasets] == [30, 5]
    assert [dataset.header.provenance[-1]["applied"] for dataset in datasets] == [True, False]
    path, _ = defend("gaussian_augmentation", few, others=[many], **settings | {"apply_predict": True})
    datasets = Dataset.all_in(path)
    assert [len(dataset) for dataset in datasets] == [9, 30]
    for dataset, source in zip(datasets, (few, many), strict=True):
        with dataset, Dataset(source) as before:
            kept = (sample for sample in dataset.samples() if same(sample.fields))
            originals = {sample.source.replace("/def_", "/"): sample.pixels for sample in kept}
            for sample in before.samples():
                np.testing.assert_array_equal(originals[sample.source], sample.pixels)


@every_defense
def test_the_run_in_mlflow_holds_parameters_metrics_and_the_tar(
    defend, make_dataset, random_pixels, mlflow_store, stage
):
    path, numbers = defend(stage, make_dataset(random_pixels(4, GRAY)))
    experiment = mlflow_store.get_experiment_by_name("evasion")
    [run] = mlflow_store.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{stage} clean"
    assert run.data.tags["stage"] == stage
    expected = {**DEFENSES[stage][1], "apply_fit": False, "apply_predict": True, "seed": 1}
    assert run.data.params == {name: str(value) for name, value in expected.items()}
    assert run.data.metrics == pytest.approx(numbers)
    logged = mlflow_store.download_artifacts(run.info.run_id, f"{stage}.tar")
    assert Path(logged).read_bytes() == path.read_bytes()


@every_defense
def test_a_damaged_dataset_leaves_no_defended_one(defend, make_dataset, random_pixels, tmp_path, mlflow_store, stage):
    source = make_dataset(random_pixels(8, GRAY))
    data = bytearray(source.read_bytes())
    data[data.rindex(b"IDAT") + 20] ^= 0xFF  # the last image: the others are defended already
    source.write_bytes(data)
    with pytest.raises(ValueError, match=r"dog/0007\.png.*corrupt"):
        defend(stage, source)
    assert not [path for path in tmp_path.iterdir() if "defended" in path.name]
    experiment = mlflow_store.get_experiment_by_name("evasion")
    assert [run.info.status for run in mlflow_store.search_runs([experiment.experiment_id])] == ["FAILED"]


@pytest.mark.parametrize(
    ("stage", "parameters", "message"),
    [
        ("spatial_smoothing", {"window_size": 0}, "window_size must be a positive integer"),
        ("spatial_smoothing", {"window_size": 2.5}, "window_size must be a positive integer"),
        ("spatial_smoothing", {"seed": -2}, "seed must be an integer in [-1, 4294967295]"),
        ("jpeg_compression", {"quality": 0}, "quality must be an integer in [1, 100]"),
        ("jpeg_compression", {"quality": 101}, "quality must be an integer in [1, 100]"),
        ("jpeg_compression", {"seed": 2**32}, "seed must be an integer in [-1, 4294967295]"),
        ("gaussian_augmentation", {"ratio": 2}, "ratio must be in [0, 1]"),
        ("gaussian_augmentation", {"ratio": float("nan")}, "ratio must be in [0, 1]"),
        ("gaussian_augmentation", {"sigma": 0}, "sigma must be above 0 and finite"),
        ("gaussian_augmentation", {"sigma": -0.1}, "sigma must be above 0 and finite"),
        ("gaussian_augmentation", {"seed": 1.0}, "seed must be an integer in [-1, 4294967295]"),
    ],
)
def test_bad_parameters_are_refused_before_anything_starts(defend, tmp_path, mlflow_store, stage, parameters, message):
    [(name, value)] = parameters.items()
    with pytest.raises(ValueError, match="must be") as error:
        defend(stage, tmp_path / "not even there", **parameters)
    assert str(error.value) == f"{message}. Received: {name}={value!r}"
    assert mlflow_store.get_experiment_by_name("evasion") is None


MEASURED = """
import importlib, json, resource, sys
from pathlib import Path
source, output, defenses = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
for stage, parameters in defenses.items():
    task = importlib.import_module(f"evasion.components.{stage}.task")
    getattr(task, stage)(dataset=source, others=[], defended=output, **parameters)
print(json.dumps({"modules": sorted(sys.modules), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def in_its_own_process(stages, source, output):
    """Run defenses as steps do and return the modules that were imported and the peak memory in KiB."""
    common = {"apply_fit": False, "apply_predict": True, "seed": 1}
    defenses = json.dumps({stage: {**DEFENSES[stage][1], **common} for stage in stages})
    command = [sys.executable, "-c", MEASURED, source, output, defenses]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_defense_imports_no_model_library(make_dataset, random_pixels, tmp_path, mlflow_store):
    """MLflow itself imports pandas, pyarrow and SciPy; the rest of the seconds are saved."""
    source = make_dataset(random_pixels(4, GRAY))
    modules = set(in_its_own_process(DEFENSES, source, tmp_path / "defended.tar")["modules"])
    assert "mlflow" in modules
    assert not modules & {"tensorflow", "keras", "torch", "art", "sklearn", "matplotlib", "kfp"}


@pytest.mark.slow
@every_defense
def test_memory_does_not_grow_with_the_number_of_images(make_dataset, random_pixels, tmp_path, mlflow_store, stage):
    sources = {images: make_dataset(random_pixels(images, GRAY)) for images in (1_000, 10_000)}
    peaks = {
        images: in_its_own_process([stage], source, tmp_path / "defended.tar")["peak"]
        for images, source in sources.items()
    }
    assert peaks[10_000] <= 1.1 * peaks[1_000], peaks
