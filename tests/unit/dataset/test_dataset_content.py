"""What is written to a dataset is what is read from it."""

import string
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from datasets import relaxed, several
from hypothesis import given
from hypothesis import strategies as st

from evasion.components.common.data import dataset, writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import COLUMNS, SPLITS, DatasetError, Header, Sample
from evasion.components.common.data.pixels import to_float, to_pixels

NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\") | st.sampled_from(string.ascii_letters),
    min_size=1,
    max_size=40,
).filter(lambda name: name not in (".", ".."))


LONG_NAMES = NAMES | NAMES.map(lambda name: (name * 150)[:150])  # more than the 100 bytes of a plain tar header


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


ENTRIES = st.builds(
    lambda parameters, stage, kind: {"parameters": parameters, "stage": stage, "kind": kind, "defense": None},
    st.dictionaries(st.text(), PLAIN, max_size=3),
    st.text(string.ascii_lowercase + "_", min_size=1, max_size=20),
    st.sampled_from(["load", "attack", "defense"]),
)


@st.composite
def datasets(draw):
    """A header with the samples it describes."""
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 3])))
    class_names = draw(st.lists(NAMES, unique=True, max_size=4))
    stems = [draw(st.lists(LONG_NAMES, unique=True, max_size=4)) for _ in class_names]
    columns = draw(st.lists(st.text(max_size=5).filter(lambda text: text not in COLUMNS), unique=True, max_size=2))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    samples = [
        Sample(
            label,
            stem,
            rng.integers(0, 256, shape, dtype=np.uint8),
            draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=30)),
            {column: draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=5)) for column in columns},
        )
        for label, of_class in enumerate(stems)
        for stem in of_class
    ]
    header = Header(
        name=draw(LONG_NAMES),
        class_names=tuple(class_names),
        counts=tuple(len(of_class) for of_class in stems),
        image_shape=shape,
        split=draw(st.sampled_from(SPLITS)),
        prefix=draw(st.sampled_from(["", "adv_", "def_adv_"])),
        provenance=tuple(draw(st.lists(ENTRIES, max_size=2))),
    )
    return header, samples


@relaxed
@given(datasets())
def test_what_is_written_is_what_is_read(header_and_samples):
    header, samples = header_and_samples
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dataset")
        writer.write(path, header, iter(samples))
        assert [path.name for path in Path(folder).iterdir()] == ["dataset"]
        first = path.read_bytes()
        with Dataset(path, header.name) as opened:
            assert opened.header == header
            assert len(opened) == len(samples)
            assert opened.labels.tolist() == [sample.label for sample in samples]
            read = list(opened.samples())
            for place, (sample, expected) in enumerate(zip(read, samples, strict=True)):
                assert sample.index == place
                assert (sample.label, sample.stem) == (expected.label, expected.stem)
                assert sample.source == f"{header.class_names[expected.label]}/{expected.stem}.png"
                assert sample.fields == expected.fields
                np.testing.assert_array_equal(sample.pixels, expected.pixels)
                np.testing.assert_array_equal(opened.pixels(place), expected.pixels)
        writer.write(path, header, iter(samples))
        assert path.read_bytes() == first


@relaxed
@given(datasets(), st.integers(1, 20))
def test_batches_hold_every_image_once_in_order(header_and_samples, batch_size):
    header, samples = header_and_samples
    with tempfile.TemporaryDirectory() as folder:
        writer.write(Path(folder, "dataset"), header, iter(samples))
        with Dataset(Path(folder, "dataset")) as opened:
            batches = list(opened.batches(batch_size))
    assert [sample.index for batch in batches for sample in batch] == list(range(len(samples)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_fault_last_batch_dropped(make_dataset, random_pixels):
    """The original's generator gave whole batches only, so up to batch_size - 1 images never counted."""
    with Dataset(make_dataset(random_pixels(7, (4, 4, 1)))) as opened:
        assert [len(batch) for batch in opened.batches(3)] == [3, 3, 1]
        assert [len(batch) for batch in opened.batches(7)] == [7]
        assert [len(batch) for batch in opened.batches(8)] == [7]


def test_fault_labels_shifted_by_a_missing_class(make_dataset, random_pixels):
    """The original numbered the existing class folders, so a class without images moved those after it."""
    path = make_dataset(random_pixels(3, (4, 4, 1)), [1, 3, 3], ["a", "b", "c", "d", "e"])
    with Dataset(path) as opened:
        assert opened.labels.tolist() == [1, 3, 3]
        assert opened.header.class_names == ("a", "b", "c", "d", "e")
        assert opened.header.counts == (0, 1, 0, 2, 0)


@pytest.mark.parametrize(
    "stretchable", [np.arange(100, 164, dtype=np.uint8), np.zeros(64, np.uint8), np.full(64, 7, np.uint8)]
)
def test_fault_contrast_stretched_images(make_dataset, stretchable):
    """The original saved through matplotlib, which stretched the darkest pixel to 0 and the brightest to 255."""
    pixels = stretchable.reshape(1, 8, 8, 1)
    with Dataset(make_dataset(pixels, class_names=["cat"])) as opened:
        np.testing.assert_array_equal(opened.pixels(0), pixels[0])


def test_fault_images_saved_as_jpeg(make_dataset):
    """The original saved as JPEG, which no noise survives."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    path = make_dataset(pixels)
    with Dataset(path) as opened, tarfile.open(path) as tar:
        np.testing.assert_array_equal([sample.pixels for sample in opened.samples()], pixels)
        assert {member.name.rpartition(".")[2] for member in tar} == {"json", "png", "csv"}


def test_rounding_to_eight_bits_and_back_changes_no_level():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_pixels(to_float(levels)), levels)
    np.testing.assert_array_equal(
        to_pixels(np.float32([-1, 0.4 / 255, 0.6 / 255, 254.6 / 255, 2])), [0, 0, 1, 255, 255]
    )


def test_the_tar_says_nothing_of_this_machine(make_dataset, random_pixels):
    with tarfile.open(make_dataset(random_pixels(2, (4, 4, 1)))) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_a_tar_of_several_datasets_holds_each_as_if_alone(make_dataset, random_pixels, tmp_path):
    named = {"first": random_pixels(3, (4, 4, 1)), "second": random_pixels(70, (9, 6, 3))}
    tar = several(tmp_path / "both.tar", make_dataset, **named)
    assert [dataset.header.name for dataset in Dataset.all_in(tar)] == ["first", "second"]
    for name, pixels in named.items():
        with Dataset(tar, name) as dataset:
            assert dataset.header.image_shape == pixels.shape[1:]
            assert np.array_equal(np.stack([sample.pixels for sample in dataset.samples()]), pixels)
            assert [sample.index for sample in dataset.samples()] == list(range(len(pixels)))
            dataset.copy_to(tmp_path / f"{name}.tar")
        with Dataset(tmp_path / f"{name}.tar") as alone, Dataset(tar, name) as dataset:
            assert alone.sha256 == dataset.sha256
            assert np.array_equal(np.stack([sample.pixels for sample in alone.samples()]), pixels)


def test_datasets_of_one_tar_can_be_read_at_once(make_dataset, random_pixels, tmp_path):
    pixels = random_pixels(80, (4, 4, 1))
    tar = several(tmp_path / "both.tar", make_dataset, first=pixels, second=pixels[::-1])
    first, second = Dataset.all_in(tar)
    with first, second:
        for sample, other in zip(first.samples(), second.samples(), strict=True):
            assert np.array_equal(sample.pixels, pixels[sample.index])
            assert np.array_equal(other.pixels, pixels[::-1][other.index])


def test_a_dataset_alone_has_the_bytes_of_write(make_dataset, random_pixels, tmp_path):
    """A hash says whether two datasets are the same, regardless of the other datasets of their tars."""
    import hashlib

    path = make_dataset(random_pixels(2, (4, 4, 1)))
    with tarfile.open(path) as tar:
        end = [member.offset_data + -(-member.size // 512) * 512 for member in tar][-1]
    with Dataset(path) as opened:
        assert opened.sha256 == hashlib.sha256(path.read_bytes()[:end]).hexdigest()
        opened.copy_to(tmp_path / "copy.tar")
    assert (tmp_path / "copy.tar").read_bytes() == path.read_bytes()[:end] + bytes(1024)


def test_one_of_several_datasets_must_be_named(make_dataset, random_pixels, tmp_path):
    pixels = random_pixels(2, (4, 4, 1))
    tar = several(tmp_path / "both.tar", make_dataset, fgm=pixels, clean=pixels)
    with pytest.raises(DatasetError, match=r"dataset_name must be given for both\.tar, which contains fgm, clean\."):
        Dataset(tar)
    with pytest.raises(DatasetError, match=r"must be a folder in the tar: 'fgm', 'clean'\. Received.*'pgd'"):
        Dataset(tar, "pgd")


def test_two_datasets_of_one_name_are_refused(make_dataset, random_pixels, tmp_path):
    path = make_dataset(random_pixels(2, (4, 4, 1)))
    with Dataset(path) as one, pytest.raises(ValueError, match="must have different names"):
        writer.write_all(tmp_path / "twice.tar", [(one.header, one.samples()), (one.header, one.samples())])
    assert not (tmp_path / "twice.tar").exists()
    with Dataset(path) as one:
        one.copy_to(tmp_path / "one.tar")
    content = (tmp_path / "one.tar").read_bytes()[:-1024]
    (tmp_path / "twice.tar").write_bytes(content + content + bytes(1024))
    with pytest.raises(DatasetError, match="two datasets of the same name"):
        Dataset.all_in(tmp_path / "twice.tar")


def test_a_tar_cut_between_two_datasets_is_refused(make_dataset, random_pixels, tmp_path):
    pixels = random_pixels(2, (4, 4, 1))
    tar = several(tmp_path / "both.tar", make_dataset, first=pixels, second=pixels)
    with tarfile.open(tar) as opened:
        second = next(member.offset for member in opened if member.name.startswith("second/"))
    tar.write_bytes(tar.read_bytes()[:second])
    with pytest.raises(DatasetError, match="truncated: the end marker of the tar is missing"):
        Dataset.all_in(tar)


def test_more_datasets_than_are_read_are_refused(make_dataset, random_pixels, tmp_path, monkeypatch):
    pixels = random_pixels(1, (2, 2, 1))
    tar = several(tmp_path / "both.tar", make_dataset, first=pixels, second=pixels)
    monkeypatch.setattr(dataset, "MAX_DATASETS", 1)
    with pytest.raises(DatasetError, match="more than 1 datasets"):
        Dataset.all_in(tar)


def test_reading_a_part_closes_everything(make_dataset, random_pixels):
    with Dataset(make_dataset(random_pixels(300, (4, 4, 1)))) as opened:
        assert next(opened.batches(2))[1].index == 1
        assert len(list(opened.samples())) == 300  # a second reading starts anew
