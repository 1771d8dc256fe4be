"""What each defense does to an image, beside ART."""

import warnings

import numpy as np
import pytest
from defending import COLOUR, GRAY, content, same, stacked
from scipy import stats
from scipy.ndimage import median_filter

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.defenses.transformations import generator
from evasion.components.common.tracking import TrackingError
from evasion.components.gaussian_augmentation.task import transformation
from evasion.components.spatial_smoothing import task as smoothing


def test_a_defense_that_cannot_be_tracked_leaves_nothing(defend, make_dataset, random_pixels, monkeypatch, tmp_path):
    source = make_dataset(random_pixels(4, GRAY))
    before = set(tmp_path.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="cannot be used"):
        defend("spatial_smoothing", source)
    assert set(tmp_path.iterdir()) == before


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
    # The largest window of OpenCV's, and the next one; SciPy takes seconds for a whole image of this size.
    for window, width in ((255, 130), (257, 2)):
        white = np.full((130, width, 1), 255, np.uint8)
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
        from evasion.components.common.data.resizing import Resizing
        from evasion.components.load_dataset.pack import pack

        folder = make_folder({"cat": random_pixels(4, GRAY)})
        for place, name in enumerate(("a", "a_1", "a_1_1", "a_2")):
            (folder / "cat" / f"{place:04d}.png").rename(folder / "cat" / f"{name}.png")
        pack(tmp_path / "loaded.tar", str(folder), GRAY, Resizing(), "testing", skip_unreadable=False)
        path, _ = defend("gaussian_augmentation", tmp_path / "loaded.tar", perform_data_augmentation=True)
        assert len(content(path)[1]) == 8  # a dictionary: of the same name there would be one
