"""`load_dataset`: folders of images become datasets, or are refused with the reason; datasets come from MLflow."""

import dataclasses
import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evasion.components.common import tracking
from evasion.components.common.data import writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import DatasetError
from evasion.components.common.models.architectures import ARCHITECTURES
from evasion.components.common.models.artifact import ModelError
from evasion.components.common.tracking import TrackingError
from evasion.components.common.tracking.client import connect
from evasion.components.load_dataset.task import load_dataset

GRAY = (28, 28, 1)
FROM_FOLDER = {
    "data_dir": "",
    "model_architecture": "le_net",
    "split": "testing",
    "skip_unreadable": False,
    "load_dataset_from_mlruns": False,
    "dataset_run_id": "",
    "dataset_tar_name": "",
    "dataset_name": "",
    "shards": 1,
    "batch_size": 32,
    "model": None,
    "interpolation": "bilinear",
    "crop_to_aspect_ratio": False,
    "pad_to_aspect_ratio": False,
}


@pytest.fixture
def load(tmp_path, mlflow_store):
    """Run the task; return the path of the dataset and its metadata."""

    def run(data_dir="", **parameters):
        path = tmp_path / "out" / "dataset"
        result = load_dataset(dataset=path, **{**FROM_FOLDER, "data_dir": str(data_dir), **parameters})
        assert result["shards"] == []
        return path, result["metadata"]

    return run


@pytest.fixture
def nothing_is_left(tmp_path):
    """After the test no dataset is there, whole or in parts."""
    yield
    assert not list((tmp_path / "out").glob("**/*"))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.fixture
def folder(make_folder, random_pixels):
    """Two images of a cat, three of a dog, one of an emu."""
    pixels = random_pixels(6, GRAY)
    return make_folder({"cat": pixels[:2], "dog": pixels[2:5], "emu": pixels[5:]})


def sha256_of_dataset(path):
    """The hash of all members of a tar, read without the package under test: not of the zeros that end it."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    return hashlib.sha256(path.read_bytes()[:end]).hexdigest()


def runs(client):
    experiment = client.get_experiment_by_name("evasion")
    return [] if experiment is None else client.search_runs([experiment.experiment_id])


class TestFolder:
    def test_every_image_is_packed_with_its_label_and_source(self, load, folder, random_pixels):
        path, returned = load(folder)
        with Dataset(path) as packed:
            assert packed.header.name == "load_dataset"
            assert packed.header.class_names == ("cat", "dog", "emu")
            assert packed.header.counts == (2, 3, 1)
            assert packed.header.prefix == ""
            samples = list(packed.samples())
        assert [sample.label for sample in samples] == [0, 0, 1, 1, 1, 2]
        assert [sample.stem for sample in samples] == ["0000", "0001", "0000", "0001", "0002", "0000"]
        np.testing.assert_array_equal([sample.pixels for sample in samples], random_pixels(6, GRAY))
        assert returned == {"images": 6, "classes": 3, "skipped": 0, "sha256": sha256_of_dataset(path)}
        with tarfile.open(path) as tar:
            table = tar.extractfile("load_dataset/samples.csv").read().decode().splitlines()
        assert table[:2] == ["path,label,source", f"cat/0000.png,cat,{folder}/cat/0000.png"]

    @pytest.mark.parametrize("split", ["training", "testing"])
    def test_provenance_says_how_it_was_made(self, load, folder, split):
        path, _ = load(folder, split=split)
        with Dataset(path) as packed:
            assert packed.header.split == split
            [entry] = packed.header.provenance
        assert entry["stage"] == "load_dataset"
        assert entry["kind"] == "load"
        resizing = {"interpolation": "bilinear", "crop_to_aspect_ratio": False, "pad_to_aspect_ratio": False}
        folder_and_split = {"data_dir": str(folder), "split": split, "skip_unreadable": False}
        assert entry["parameters"] == folder_and_split | resizing
        assert entry["skipped"] == {}
        assert entry["parent_sha256"] is None
        assert entry["versions"].keys() >= {"evasion-pipelines", "python", "numpy", "pillow", "opencv-python-headless"}

    def test_the_same_folder_gives_the_same_bytes(self, load, folder):
        first = load(folder)[0].read_bytes()
        os.utime(folder / "cat" / "0000.png", (0, 0))
        assert load(folder)[0].read_bytes() == first

    @pytest.mark.parametrize("architecture", ["le_net", "alex_net", "resnet50", "inceptionv3"])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_images_take_the_shape_of_the_architecture(self, load, tmp_path, architecture, mode):
        (tmp_path / "images" / "a").mkdir(parents=True)
        Image.new(mode, (40, 30), 77 if mode == "L" else (77, 77, 77)).save(tmp_path / "images" / "a" / "x.png")
        path, _ = load(tmp_path / "images", model_architecture=architecture)
        with Dataset(path) as packed:
            assert packed.header.image_shape == ARCHITECTURES[architecture].input_shape
            assert (packed.pixels(0) == 77).all()

    def test_the_run_in_mlflow_holds_parameters_hash_and_tar(self, load, folder, mlflow_store):
        path, returned = load(folder)
        [run] = runs(mlflow_store)
        assert run.info.status == "FINISHED"
        assert run.data.params["data_dir"] == str(folder)
        assert run.data.params["dataset_sha256"] == returned["sha256"]
        assert run.data.metrics == {"images": 6, "classes": 3, "skipped": 0}
        logged = mlflow_store.download_artifacts(run.info.run_id, "load_dataset.tar")
        assert path.read_bytes() == Path(logged).read_bytes()


DAMAGED = {
    "empty": lambda good: b"",
    "truncated": lambda good: good[: len(good) // 2],
    "corrupt": lambda good: good[:-20] + bytes([good[-20] ^ 0xFF]) + good[-19:],
    "not an image": lambda good: b"a text that somebody called .png",
}


class TestUnreadable:
    @pytest.fixture
    def damage(self, folder):
        def one(place, kind):
            file = folder / place
            file.write_bytes(DAMAGED[kind](file.read_bytes()))
            return str(file)

        return one

    @pytest.mark.parametrize("kind", DAMAGED)
    def test_one_among_good_ones_is_named(self, load, folder, damage, mlflow_store, nothing_is_left, kind):
        damaged = damage("dog/0001.png", kind)
        with pytest.raises(ValueError, match="cannot be read") as error:
            load(folder)
        assert str(error.value).startswith(
            "1 of 6 images cannot be read; repair or remove them, or set skip_unreadable "
            f"(of load_dataset or evaluation). {damaged}: {kind}"
        )
        [run] = runs(mlflow_store)
        assert run.info.status == "FAILED"
        assert not mlflow_store.list_artifacts(run.info.run_id)

    def test_all_of_them_are_named_at_once(self, load, folder, damage, nothing_is_left):
        damaged = [damage("cat/0000.png", "empty"), damage("dog/0001.png", "corrupt"), damage("emu/0000.png", "empty")]
        with pytest.raises(ValueError, match="3 of 6 images cannot be read") as error:
            load(folder)
        assert all(name in str(error.value) for name in damaged)

    def test_of_very_many_the_first_are_named(self, load, make_folder, random_pixels, nothing_is_left):
        folder = make_folder({"cat": random_pixels(40, (4, 4, 1))})
        for file in sorted((folder / "cat").iterdir())[:-1]:
            file.write_bytes(b"")
        with pytest.raises(ValueError, match="39 of 40 images cannot be read") as error:
            load(folder)
        assert str(error.value).count("empty:") == 20
        assert str(error.value).endswith("; and 19 more")

    @pytest.mark.parametrize("kind", DAMAGED)
    def test_skip_unreadable_leaves_it_out_and_records_it(self, load, folder, damage, mlflow_store, kind):
        damaged = damage("dog/0001.png", kind)
        path, returned = load(folder, skip_unreadable=True)
        with Dataset(path) as packed:
            assert packed.header.counts == (2, 2, 1)
            assert [sample.stem for sample in packed.samples() if sample.label == 1] == ["0000", "0002"]
            [entry] = packed.header.provenance
        assert list(entry["skipped"]) == [damaged]
        assert entry["skipped"][damaged].startswith(kind)
        assert returned["images"] == 5
        assert returned["skipped"] == 1
        assert runs(mlflow_store)[0].data.metrics["skipped"] == 1

    def test_fault_labels_shifted_by_a_missing_class(self, load, folder, damage):
        """All images of a class are skipped: those of the classes behind it keep their index."""
        for number in range(3):
            damage(f"dog/000{number}.png", "empty")
        path, returned = load(folder, skip_unreadable=True)
        with Dataset(path) as packed:
            assert packed.header.class_names == ("cat", "dog", "emu")
            assert packed.header.counts == (2, 0, 1)
            assert packed.labels.tolist() == [0, 0, 2]
        assert returned["classes"] == 3

    def test_without_any_readable_image_there_is_no_dataset(self, load, folder, damage, nothing_is_left):
        damaged = [damage(str(file.relative_to(folder)), "empty") for file in sorted(folder.glob("*/*"))]
        with pytest.raises(ValueError, match="data_dir must contain readable images; none of 6 is") as error:
            load(folder, skip_unreadable=True)
        assert all(name in str(error.value) for name in damaged)

    def test_a_file_that_takes_no_reading_is_named(self, load, folder, nothing_is_left):
        os.mkfifo(folder / "cat" / "pipe.png")  # opening it would wait for ever
        (folder / "dog" / "broken.png").symlink_to(folder / "gone.png")
        with pytest.raises(ValueError, match="2 of 8 images cannot be read") as error:
            load(folder)
        assert f"{folder}/cat/pipe.png: not a regular file" in str(error.value)
        assert f"{folder}/dog/broken.png: not a regular file: a broken link" in str(error.value)


class TestBadFolder:
    @pytest.mark.parametrize(
        ("place", "rule"),
        [
            ("", "data_dir must be given. Received: data_dir=''"),
            ("{0}/missing", "data_dir must be an existing folder of <class>/<image> or gs://. Received:"),
            ("{0}/file", "data_dir must be an existing folder of <class>/<image> or gs://. Received:"),
            ("{0}/empty", "data_dir must hold a folder for each class; it is empty. Received:"),
        ],
    )
    def test_a_missing_or_empty_one_is_refused_before_mlflow_is_called(self, load, tmp_path, mlflow_store, place, rule):
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="data_dir must") as error:
            load(place.format(tmp_path))
        assert str(error.value).startswith(rule)
        assert not runs(mlflow_store)

    def test_a_class_without_images_is_named(self, load, folder, nothing_is_left):
        (folder / "fox").mkdir()
        with pytest.raises(ValueError, match="whose class 'fox' is empty"):
            load(folder)

    def test_images_outside_class_folders_are_named(self, load, folder, nothing_is_left):
        shutil.copyfile(folder / "cat" / "0000.png", folder / "stray.png")
        with pytest.raises(ValueError, match=r"with the image 'stray\.png' outside the class folders"):
            load(folder)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"model_architecture": "resnet"}, "model_architecture must be one of shallow_net, le_net, alex_net, "),
            ({"split": "test"}, "split must be one of training, testing. Received: split='test'"),
            (
                {"load_dataset_from_mlruns": True, "dataset_tar_name": "t", "dataset_name": "n"},
                "dataset_run_id must be given with load_dataset_from_mlruns. Received: dataset_run_id=''",
            ),
            (
                {"load_dataset_from_mlruns": True, "dataset_run_id": "r", "dataset_name": "n"},
                "dataset_tar_name must be given with load_dataset_from_mlruns. Received: dataset_tar_name=''",
            ),
            (
                {"load_dataset_from_mlruns": True, "dataset_run_id": "r", "dataset_tar_name": "t"},
                "dataset_name must be given with load_dataset_from_mlruns. Received: dataset_name=''",
            ),
        ],
    )
    def test_bad_parameters_are_refused_before_anything_starts(self, load, folder, mlflow_store, parameters, message):
        with pytest.raises(ValueError, match="must be") as error:
            load(folder, **parameters)
        assert str(error.value).startswith(message)
        assert not runs(mlflow_store)


class TestFromMlflow:
    @pytest.fixture
    def logged(self, load, folder, monkeypatch):
        """A pipeline's run with a stage that logged load_dataset.tar; returns both ids and the tar's hash."""
        with tracking.pipeline_run("pipeline", {}) as parent:
            monkeypatch.setenv("MLFLOW_RUN_ID", parent)
            path, returned = load(folder)
            monkeypatch.delenv("MLFLOW_RUN_ID")
        shutil.rmtree(path.parent)
        [stage] = [run for run in runs(connect()) if run.info.run_id != parent]
        return {"stage": stage.info.run_id, "pipeline": parent, "sha256": returned["sha256"]}

    @pytest.fixture
    def take(self, load, logged):
        def run(run="stage", tar="load_dataset.tar", name="load_dataset", **parameters):
            return load(
                load_dataset_from_mlruns=True,
                dataset_run_id=logged.get(run, run),
                dataset_tar_name=tar,
                dataset_name=name,
                **parameters,
            )

        return run

    @pytest.mark.parametrize("run", ["stage", "pipeline"])
    def test_it_comes_from_the_run_of_the_stage_or_of_its_pipeline(self, take, logged, run):
        path, returned = take(run)
        assert returned == {"images": 6, "classes": 3, "skipped": 0, "sha256": logged["sha256"]}
        assert sha256_of_dataset(path) == logged["sha256"]

    def test_the_new_run_records_where_it_came_from(self, take, logged, mlflow_store):
        take("pipeline")
        newest = max(runs(mlflow_store), key=lambda run: run.info.start_time)
        assert newest.data.params["dataset_run_id"] == logged["pipeline"]
        assert newest.data.params["dataset_sha256"] == logged["sha256"]

    def test_an_unknown_run_is_reported(self, take, nothing_is_left):
        with pytest.raises(TrackingError, match=f"MLflow has no such run. Received: run_id='{'0' * 32}'"):
            take("0" * 32)

    @pytest.mark.parametrize("run", ["stage", "pipeline"])
    @pytest.mark.parametrize("tar", ["fgm.tar", "../load_dataset.tar", "/etc/passwd", "load_dataset"])
    def test_an_unknown_tar_is_reported_with_those_that_are_there(self, take, nothing_is_left, run, tar):
        with pytest.raises(TrackingError, match="dataset_tar_name must be") as error:
            take(run, tar)
        assert "which has load_dataset.tar. Received:" in str(error.value)
        assert f"dataset_tar_name={tar!r}" in str(error.value)

    def test_a_name_that_several_stages_have_is_reported(self, take, load, folder, logged, monkeypatch, tmp_path):
        monkeypatch.setenv("MLFLOW_RUN_ID", logged["pipeline"])
        load(folder, split="training")
        monkeypatch.delenv("MLFLOW_RUN_ID")
        with pytest.raises(TrackingError, match="several stages logged this name: give the run id of one stage"):
            take("pipeline")
        assert take("stage")[1]["sha256"] == logged["sha256"]

    def test_classes_that_the_model_does_not_know_are_refused(self, take, le_net_artifact, nothing_is_left):
        with pytest.raises(ModelError, match="The model does not know 3 of the dataset's 3 classes: "):
            take(model=le_net_artifact)

    def test_another_dataset_name_is_reported(self, take, nothing_is_left):
        with pytest.raises(DatasetError) as error:
            take(name="fgm")
        assert str(error.value) == (
            "dataset_name must be a folder in the tar: 'load_dataset'. Received: dataset_name='fgm'"
        )

    def test_one_of_several_datasets_is_taken_as_if_it_were_alone(self, take, logged, mlflow_store, tmp_path):
        """An attack logs the images of all its attackers in one tar."""
        tar = Path(mlflow_store.download_artifacts(logged["stage"], "load_dataset.tar"))
        with Dataset(tar) as loaded:
            samples = list(loaded.samples())
            headers = [dataclasses.replace(loaded.header, name=name) for name in ("fgm", "fgm_aware_of_x")]
        (tmp_path / "tars").mkdir()
        reverse = [dataclasses.replace(sample, pixels=sample.pixels[::-1]) for sample in samples]
        writer.write_all(tmp_path / "tars" / "fgm.tar", zip(headers, (samples, reverse), strict=True))
        mlflow_store.log_artifact(logged["stage"], str(tmp_path / "tars" / "fgm.tar"))
        for name, expected in (("fgm", samples), ("fgm_aware_of_x", reverse)):
            path, returned = take(tar="fgm.tar", name=name)
            with Dataset(path) as taken:
                assert taken.header.name == name
                downloaded = list(taken.samples())
            np.testing.assert_array_equal(
                [sample.pixels for sample in downloaded], [sample.pixels for sample in expected]
            )
            assert returned["sha256"] == sha256_of_dataset(path)
            with Dataset(tmp_path / "tars" / "fgm.tar", name) as among:
                assert among.sha256 == returned["sha256"]

    @pytest.mark.parametrize("architecture", ["alex_net", "resnet50"])
    def test_a_dataset_of_another_shape_is_reported(self, take, nothing_is_left, architecture):
        shape = ARCHITECTURES[architecture].input_shape
        with pytest.raises(ValueError, match="take the dataset that was loaded for this model") as error:
            take(model_architecture=architecture)
        assert f"The dataset's images are (28, 28, 1), but the model takes {shape}" in str(error.value)

    @pytest.mark.parametrize("damage", ["cut short", "hostile", "no tar"])
    def test_fault_unsafe_tar_extraction(self, take, logged, mlflow_store, tmp_path, nothing_is_left, damage):
        """The original unpacked whatever the run held."""
        hostile = io.BytesIO()
        with tarfile.open(fileobj=hostile, mode="w") as tar:
            member = tarfile.TarInfo("../../evil")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        good = tmp_path / "good.tar"
        shutil.copyfile(mlflow_store.download_artifacts(logged["stage"], "load_dataset.tar"), good)
        (tmp_path / "bad").mkdir()
        bad = tmp_path / "bad" / "load_dataset.tar"
        content = {"cut short": good.read_bytes()[:3000], "hostile": hostile.getvalue(), "no tar": b"MZ"}[damage]
        bad.write_bytes(content)
        mlflow_store.log_artifact(logged["stage"], str(bad))
        with pytest.raises(DatasetError):
            take()
        assert not list(tmp_path.rglob("evil"))

    def test_the_folder_and_its_rules_do_not_count(self, take, logged):
        assert take(data_dir="/no/such/folder")[1]["sha256"] == logged["sha256"]
