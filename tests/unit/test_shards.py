"""A dataset in shards: what is packed, and that all numbers are those of a single run, to the last bit."""

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from evasion.components.common.data.dataset import Dataset
from evasion.components.fgm.task import fgm
from evasion.components.gaussian_augmentation.task import gaussian_augmentation
from evasion.components.infer.task import infer
from evasion.components.load_dataset.task import load_dataset, shard_names
from evasion.components.pgd.task import pgd
from evasion.components.report.task import report
from evasion.components.security_curve.task import security_curve

IMAGES, BATCH = 75, 10  # eight batches, the last of five


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """75 digits in class folders."""
    from PIL import Image

    root = tmp_path_factory.mktemp("digits")
    for number, (pixels, label) in enumerate(zip(digits.pixels[:IMAGES], digits.labels[:IMAGES], strict=True)):
        place = root / str(label) / f"{number:03d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[:, :, 0]).save(place)
    return root


@pytest.fixture
def load(tmp_path, folder, mlflow_store):
    def run(shards, batch_size=BATCH, **changed):
        parameters = {
            "data_dir": str(folder),
            "model_architecture": "le_net",
            "split": "testing",
            "skip_unreadable": False,
            "load_dataset_from_mlruns": False,
            "dataset_run_id": "",
            "dataset_tar_name": "",
            "dataset_name": "",
            "model": None,
            "interpolation": "bilinear",
            "crop_to_aspect_ratio": False,
            "pad_to_aspect_ratio": False,
        }
        path = tmp_path / f"dataset-{shards}"
        told = load_dataset(dataset=path, shards=shards, batch_size=batch_size, **parameters | changed)
        assert told["shards"] == shard_names(shards)
        return [path / name for name in told["shards"]] or [path], told["metadata"]

    return run


@pytest.mark.parametrize(("shards", "sizes"), [(1, [75]), (2, [40, 35]), (3, [30, 30, 15]), (8, [10] * 7 + [5])])
def test_shards_hold_whole_batches_in_the_same_order(load, shards, sizes):
    tars, told = load(shards)
    found = []
    for place, tar in enumerate(tars):
        with Dataset(tar) as shard:
            found.append([(sample.source, sample.label, sample.pixels.tobytes()) for sample in shard.samples()])
            assert len(shard.header.class_names) == 10
            assert shard.header.provenance[0].get("shard", [0, 1]) == [place, shards]
    assert [len(each) for each in found] == sizes
    assert told["images"] == IMAGES
    with Dataset(load(1)[0][0]) as whole:
        assert [*itertools.chain(*found)] == [(one.source, one.label, one.pixels.tobytes()) for one in whole.samples()]
        if shards == 1:
            assert told["sha256"] == whole.sha256


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shards": 9}, r"at most the number of batches, 8: 75 images in batches of 10. Received: shards=9"),
        ({"shards": 76, "batch_size": 1}, "at most the number of batches, 75: 75 images in batches of 1"),
        ({"shards": 0}, "shards must be a positive integer. Received: shards=0"),
        ({"shards": 2, "load_dataset_from_mlruns": True}, "shards must be 1 with load_dataset_from_mlruns"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused_and_leaves_nothing(load, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        load(**changed)
    assert not list(tmp_path.glob("dataset*"))
    assert not list(tmp_path.glob(".dataset*"))


def test_an_unreadable_image_in_the_last_shard_leaves_none(load, folder, tmp_path):
    broken = folder / "9" / "zzz.png"
    broken.write_bytes(b"no image")
    try:
        with pytest.raises(ValueError, match=r"1 of 76 images cannot be read.*zzz\.png"):
            load(3)
        assert not list(tmp_path.glob("dataset*"))
        tars, told = load(3, skip_unreadable=True)
        assert (told["images"], told["skipped"]) == (75, 1)
        for tar in tars:
            with Dataset(tar) as shard:
                assert len(shard.header.provenance[0]["skipped"]) == 1
    finally:
        broken.unlink()


NOISE = {"perform_data_augmentation": False, "ratio": 1.0, "sigma": 0.2}


def evaluated(tars, model, root):
    """Run the stages of an evaluation on each shard, report on all, and return the report and its page."""
    common = {"batch_size": BATCH, "seed": 5}
    size = {"eps": 0.2, "norm": "inf", "eot_samples": 2, **common}
    known = json.dumps({"gaussian_augmentation": NOISE})
    evaluations, curves = [], []
    for place, clean in enumerate(tars):
        folder = root / str(place)
        folder.mkdir(parents=True)
        target = {"dataset": clean, "model": model, **size}
        fgm(adversarial=folder / "fgm", defenses="", eps_step=0.05, minimal=True, **target)
        pgd(adversarial=folder / "pgd", defenses=known, eps_step=0.1, max_iter=2, num_random_init=2, **target)
        gaussian_augmentation(
            dataset=clean, others=[folder / "pgd"], defended=folder / "noisy", apply_fit=False, apply_predict=True,
            seed=5, **NOISE,
        )  # fmt: skip
        attacked = [folder / name for name in ("fgm", "pgd", "noisy")]
        infer(dataset=clean, others=attacked, model=model, evaluation=folder / "infer", **common)
        evaluations.append(folder / "infer")
        security_curve(curve=folder / "curve", defenses=known, eps_values="0.4", pgd_max_iter=2, **target)
        curves.append(folder / "curve")
    html, summary = root / "report.html", root / "report.json"
    # In any order: as Kubeflow gathers them, and as it does not.
    report(
        evaluation=None, evaluation_shards=evaluations[::-1], curve=None, curve_shards=curves,
        html=html, summary=summary, clean_accuracy_floor=0.5,
    )  # fmt: skip
    return json.loads(summary.read_text())


def without_hashes(found):
    """A report without the hashes of the tars that it speaks of, which depend on the shards."""
    if isinstance(found, dict):
        hashes = {"sha256", "dataset_sha256", "parent_sha256"}
        return {name: without_hashes(each) for name, each in found.items() if name not in hashes}
    if isinstance(found, list):
        return [without_hashes(each) for each in found]
    return found.partition(", original images")[0] if isinstance(found, str) else found


@pytest.mark.slow
def test_the_report_of_shards_is_that_of_the_whole_to_the_last_bit(load, le_net_artifact, tmp_path):
    whole, parted = (evaluated(load(shards)[0], le_net_artifact, tmp_path / str(shards)) for shards in (1, 2))
    assert parted["originals"] == whole["originals"]
    assert [each["right"] for each in parted["evaluations"]] == [each["right"] for each in whole["evaluations"]]
    assert all(each["right"] for each in whole["evaluations"])
    assert without_hashes(parted) == without_hashes(whole)
    # It is not all the same because nothing is in it.
    assert [each["title"].partition(" ")[0] for each in whole["evaluations"]] == [
        "clean",
        "gaussian_augmentation",
        "fgm",
        "pgd",
        "pgd",
        "pgd",
    ]
    assert {"auc", "loss", "attack_success_rate"} <= whole["evaluations"][2]["metrics"].keys()
    assert whole["evaluations"][4]["distances"]["l_2_norm"]["stdev"] > 0
    assert whole["evaluations"][4]["attack_distances"]["l_2_norm"]["stdev"] > 0
    assert whole["minimal"][0]["median"]
    assert len(whole["pictures"][0]["images"]) == 24


@pytest.fixture
def parts(load, le_net_artifact, tmp_path):
    """The evaluations of the three clean shards."""
    tars, _ = load(3)
    folders = [tmp_path / f"clean-{place}" for place in range(3)]
    for tar, folder in zip(tars, folders, strict=True):
        infer(dataset=tar, others=[], model=le_net_artifact, evaluation=folder, batch_size=BATCH, seed=1)
    return folders


def reported(folders, tmp_path):
    paths = {"html": tmp_path / "report.html", "summary": tmp_path / "report.json"}
    given = {"evaluation": None, "evaluation_shards": folders, "curve": None, "curve_shards": []}
    report(**given, clean_accuracy_floor=0.5, **paths)
    return json.loads(paths["summary"].read_text())


def change(folder, edit):
    path = Path(folder, "load_dataset", "evaluation.json")
    content = json.loads(path.read_text())
    before = copy.deepcopy(content)
    edit(content)
    assert content != before
    path.write_text(json.dumps(content))


def test_shards_that_went_through_other_stages_are_refused(parts, tmp_path):
    change(parts[1], lambda content: content["dataset"]["provenance"].append(content["dataset"]["provenance"][0]))
    with pytest.raises(
        ValueError, match=r"differ in their stages\. Received: load_dataset; load_dataset, load_dataset"
    ):
        reported(parts, tmp_path)


def test_a_shard_with_damaged_counts_is_named(parts, tmp_path):
    counts = Path(parts[1], "load_dataset", "counts.npz")
    with np.load(counts) as arrays:
        np.savez(counts.with_name("other.npz"), **{name: arrays[name] for name in arrays if name != "above"})
    counts.with_name("other.npz").replace(counts)
    with pytest.raises(ValueError, match="above is not a file in the archive") as raised:
        reported(parts, tmp_path)
    assert str(counts.parent) in str(raised.value)


def test_shards_that_are_missing_or_of_other_runs_are_refused(parts, tmp_path):
    with pytest.raises(ValueError, match=r"needs each of its shards once. Received: 1 of 3, 3 of 3"):
        reported([parts[0], parts[2]], tmp_path)
    with pytest.raises(ValueError, match=r"needs each of its shards once. Received: 1 of 3, 2 of 3, 2 of 3"):
        reported([parts[0], parts[1], parts[1]], tmp_path)
    change(parts[1], lambda content: content["model"].update(sha256="f" * 64))
    with pytest.raises(ValueError, match="shards must be measured alike, but differ in model"):
        reported(parts, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_seeds_that_each_shard_drew_are_all_told(parts, tmp_path):
    change(parts[1], lambda content: content.update(seed=2))
    assert reported(parts, tmp_path)["evaluations"][0]["seed"] == [1, 2, 1]


def test_a_shard_without_some_classes_counts_as_what_it_is(parts, tmp_path):
    """The images lie in the order of their classes, so every shard lacks most of them."""
    contents = [json.loads((folder / "load_dataset" / "evaluation.json").read_text()) for folder in parts]
    assert all(0 in content["dataset"]["counts"] for content in contents)
    made = reported(parts, tmp_path)
    assert (
        made["datasets"][0]["dataset"]["counts"] == np.sum([c["dataset"]["counts"] for c in contents], axis=0).tolist()
    )
    assert made["evaluations"][0]["metrics"]["images"] == IMAGES


def test_a_shard_that_lacks_a_dataset_is_told(parts, tmp_path):
    """As one of another pipeline would."""
    path = parts[2] / "evaluations.json"
    assert json.loads(path.read_text()) == ["load_dataset"]
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"needs each of its shards once. Received: 1 of 3, 2 of 3$"):
        reported(parts, tmp_path)
