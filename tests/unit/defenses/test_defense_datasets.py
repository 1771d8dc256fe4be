"""What a defense makes of datasets."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from defending import COLOUR, DEFENSES, GRAY, content, every_defense, same, stacked
from scipy import stats
from scipy.spatial.distance import cosine

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.writer import write_all


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
