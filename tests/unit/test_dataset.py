"""The dataset artifact: what is written is what is read, and nothing else is taken for one."""

import contextlib
import dataclasses
import io
import json
import string
import struct
import tarfile
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_files import files_up_to

from evasion.components.common.data import dataset, header, writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.header import COLUMNS, SPLITS, DatasetError, Header, Sample
from evasion.components.common.data.pixels import ahead, to_float, to_pixels

# Hypothesis draws its own examples, so the same file may serve all of them; and this machine may be busy.
relaxed = settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))

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
    lambda more, stage, kind: {**more, "stage": stage, "kind": kind, "defense": None},
    st.dictionaries(st.text(), PLAIN, max_size=3),
    st.text(),
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


def several(path, make, **named):
    """A tar with several datasets, one for each name, each with the images of a dataset from `make`; and its parts."""
    singles = {}
    for name, pixels in named.items():
        singles[name] = make(pixels)
    opened = {name: Dataset(single) for name, single in singles.items()}
    with contextlib.ExitStack() as stack:
        for dataset in opened.values():
            stack.enter_context(dataset)
        renamed = {name: dataclasses.replace(dataset.header, name=name) for name, dataset in opened.items()}
        writer.write_all(path, [(renamed[name], list(opened[name].samples())) for name in named])
    return path


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


class TestWriting:
    HEADER = Header(name="d", class_names=("a", "b"), counts=(2, 1), image_shape=(2, 2, 1), split="testing")

    @staticmethod
    def sample(label=0, stem="x", shape=(2, 2, 1), dtype=np.uint8):
        return Sample(label, stem, np.zeros(shape, dtype))

    @pytest.mark.parametrize(
        ("last", "error"),
        [
            ([], r"wrote \[2, 0\] images of the classes instead of \[2, 1\]"),
            ([Sample(0, "z", np.zeros((2, 2, 1), np.uint8))], r"wrote \[3, 0\] images of the classes"),
            ([Sample(1, "z", np.zeros((2, 2, 3), np.uint8))], "z: uint8"),
            ([Sample(1, "z", np.zeros((2, 2, 1), np.float32))], "z: float32"),
            (
                [Sample(1, place, np.zeros((2, 2, 1), np.uint8)) for place in "zw"],
                r"wrote \[2, 2\] images",
            ),
        ],
        ids=["too few", "of another class", "of another shape", "of another type", "too many"],
    )
    def test_images_other_than_the_header_says_leave_nothing(self, tmp_path, last, error):
        with pytest.raises(RuntimeError, match=error):
            writer.write(tmp_path / "out", self.HEADER, [self.sample(), self.sample(stem="y"), *last])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt(), MemoryError()])
    def test_a_failing_producer_leaves_nothing_and_what_was_there_stays(self, tmp_path, error):
        def samples():
            yield self.sample()
            raise error

        (tmp_path / "out").write_text("before")
        with pytest.raises(type(error)):
            writer.write(tmp_path / "out", self.HEADER, samples())
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out").read_text() == "before"

    @pytest.mark.parametrize("room", [0, 512, 5_000, 60_000, 200_000])
    def test_a_full_disk_leaves_nothing(self, tmp_path, room):
        noise = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1), dtype=np.uint8)
        header = Header(name="d", class_names=("a",), counts=(300,), image_shape=(28, 28, 1), split="testing")
        samples = (Sample(0, f"{place}", image) for place, image in enumerate(noise))
        with files_up_to(room), pytest.raises(OSError, match="the incomplete file was removed") as error:
            writer.write(tmp_path / "out", header, samples)
        assert str(tmp_path / "out") in str(error.value)
        assert not list(tmp_path.iterdir())

    def test_images_wait_in_bounded_number(self, tmp_path):
        """Memory must not grow with the number of images, however much faster they come than they are encoded."""
        images, shape = 4_000, (64, 64, 3)
        header = Header(name="d", class_names=("a",), counts=(images,), image_shape=shape, split="testing")
        tracemalloc.start()
        writer.write(tmp_path / "out", header, (Sample(0, f"{n}", np.zeros(shape, np.uint8)) for n in range(images)))
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with Dataset(tmp_path / "out") as opened:
            assert sum(1 for _ in opened.samples()) == images
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        in_flight = ahead(shape)["ahead"] * 64 * 64 * 3
        assert max(written, read) < 4 * in_flight  # all of them would be 8 times as much as those ahead


GOOD = {"name": "d", "class_names": ("a", "b"), "counts": (0, 1), "image_shape": (2, 2, 1), "split": "testing"}


class TestHeader:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"name": ".."}, "dataset_name must be one plain folder name"),
            ({"name": "a/b"}, "dataset_name must be one plain folder name"),
            ({"name": ""}, "dataset_name must be one plain folder name"),
            ({"name": "a\nb"}, "dataset_name must be one plain folder name"),
            ({"class_names": ("a", "../b")}, "class name must be one plain folder name"),
            ({"class_names": ("a", "b\\c")}, "class name must be one plain folder name"),
            ({"class_names": ("a", "\udcff")}, "class name must be one plain folder name"),
            ({"class_names": ("a", "a")}, "must be unique"),
            ({"counts": (1,)}, "must have a count"),
            ({"split": "validation"}, "split must be one of training, testing"),
            ({"image_shape": (2, 2, 4)}, "image_shape must be"),
            ({"image_shape": (0, 2, 1)}, "image_shape must be"),
            ({"image_shape": (100_000, 100_000, 3)}, "image_shape must be"),
        ],
    )
    def test_what_makes_no_dataset_is_reported(self, change, message):
        with pytest.raises(DatasetError, match=message):
            Header(**{**GOOD, **change})

    def test_derive_keeps_what_it_is_and_adds_what_was_done(self):
        header = Header(**GOOD, provenance=({"stage": "load_dataset"},), prefix="adv_")
        derived = header.derive(name="e", prefix="def_", entry={"stage": "e"}, counts=[0, 2])
        assert derived == Header(
            **{**GOOD, "name": "e", "counts": (0, 2)},
            prefix="def_adv_",
            provenance=({"stage": "load_dataset"}, {"stage": "e"}),
        )


# From here on: tars that are hostile, damaged or none at all.


def members(path):
    """Every member of a tar with its content."""
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]


def build(parts, form=tarfile.PAX_FORMAT):
    """A tar of (TarInfo, content); a TarInfo's own size is kept where it is not the content's."""
    buffer = io.BytesIO()
    for member, content in parts:
        buffer.write(member.tobuf(form))
        buffer.write(content)
        buffer.write(bytes(-len(content) % 512))
    return buffer.getvalue() + bytes(1024)


def entry(name, content=b"", **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    return member, content


def raw_header(name, size, kind=b"0"):
    """A header that tarfile would not write: of a size below 0, or a kind that it keeps to itself."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block[:148] + b" " * 8 + block[156:]))[0]
    return bytes(block)


def padded(content):
    return content + bytes(-len(content) % 512)


def pax(**records):
    """An extended header as other programs write it, with whatever it claims of the next member."""
    body = b""
    for key, value in records.items():
        record = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length += 1
        body += str(length).encode() + record
    return raw_header("././@PaxHeader", len(body), tarfile.XHDTYPE) + padded(body)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The members of a dataset `good` of three images of 3x3 pixels in the classes a and b."""
    path = tmp_path_factory.mktemp("good") / "dataset"
    header = Header(name="good", class_names=("a", "b"), counts=(2, 1), image_shape=(3, 3, 1), split="testing")
    rng = np.random.default_rng(0)
    writer.write(
        path,
        header,
        [
            Sample(label, stem, rng.integers(0, 256, (3, 3, 1), dtype=np.uint8), "from", {"l_1_norm": 0.5})
            for label, stem in ((0, "x"), (0, "y"), (1, "z"))
        ],
    )
    return members(path)


def described(good, **changes):
    """The good dataset with another dataset.json."""
    text = json.dumps({**json.loads(good[0][1]), **changes})
    return [entry("good/dataset.json", text.encode()), *good[1:]]


def table(good, text):
    return [*good[:-1], entry("good/samples.csv", text if isinstance(text, bytes) else text.encode())]


def rows(good):
    return good[-1][1].decode().splitlines(keepends=True)


def giant_png(side=50_000):
    """A few kilobytes that claim 2.5 billion pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def image_first(*parts):
    """Put something behind dataset.json, where images are."""
    return lambda good: build([good[0], *parts, *good[1:]])


def spliced(block):
    """The same for bytes that tarfile would not write."""
    return lambda good: build(good[:1])[:-1024] + block + build(good[1:])


def with_png(png):
    return lambda good: build([good[0], entry("good/a/x.png", png), *good[2:]])


SPARSE = entry("good/a/s.png", bytes(512))
HOSTILE = {
    # Names that lead elsewhere.
    "parent folder": (image_first(entry("../evil.png", b"x")), "is not <dataset_name>/<class>/<stem>.png"),
    "parent folder inside": (image_first(entry("good/a/../../../evil.png", b"x")), "is not <dataset_name>"),
    "absolute name": (image_first(entry("/etc/evil.png", b"x")), "is not <dataset_name>"),
    "absolute long name": (
        spliced(pax(path="/tmp/" + "e" * 120 + ".png") + padded(raw_header("a", 0))),
        "is not <dataset",
    ),
    "backslashes": (image_first(entry("good/a/..\\..\\evil.png", b"x")), "is not <dataset_name>"),
    "name with a line break": (image_first(entry("good/a/e\nvil.png", b"x")), "is not <dataset_name>"),
    "name that is no text": (spliced(raw_header("good/a/\udcff.png", 0)), "is not <dataset_name>"),
    "empty name": (image_first(entry("", b"x")), "is not <dataset_name>"),
    "dot folder": (image_first(entry("good/./x.png", b"x")), "is not <dataset_name>"),
    "folder in a class": (image_first(entry("good/a/deep/x.png", b"x")), "is not <dataset_name>"),
    # What is no plain file.
    "symbolic link": (
        image_first(entry("good/a/l.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "link, a device",
    ),
    "hard link": (image_first(entry("good/a/l.png", type=tarfile.LNKTYPE, linkname="good/a/x.png")), "link, a device"),
    "character device": (image_first(entry("good/a/d.png", type=tarfile.CHRTYPE, devmajor=1)), "link, a device"),
    "block device": (image_first(entry("good/a/d.png", type=tarfile.BLKTYPE, devmajor=8)), "link, a device"),
    "fifo": (image_first(entry("good/a/f.png", type=tarfile.FIFOTYPE)), "link, a device"),
    "folder": (image_first(entry("good/a", type=tarfile.DIRTYPE)), "link, a device or a folder"),
    "contiguous file": (image_first(entry("good/a/c.png", type=tarfile.CONTTYPE)), "link, a device"),
    "unknown kind": (image_first(entry("good/a/u.png", type=b"Z")), "link, a device"),
    "header is a link": (
        lambda good: build([entry("good/dataset.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"), *good[1:]]),
        "link, a device",
    ),
    "table is a link": (
        lambda good: build([*good[:-1], entry("good/samples.csv", type=tarfile.LNKTYPE, linkname="good/a/x.png")]),
        "link, a device",
    ),
    "sparse file": (spliced(raw_header("good/a/s.png", 0, tarfile.GNUTYPE_SPARSE)), "link, a device"),
    "sparse file 0.1": (
        spliced(pax(GNU__sparse__map="0,1", GNU__sparse__size=10**15) + build([SPARSE])[:-1024]),
        "is a sparse file",
    ),
    "sparse file 1.0": (
        spliced(
            pax(GNU__sparse__major=1, GNU__sparse__minor=0, GNU__sparse__realsize=10**15)
            + build([entry("good/a/s.png", padded(b"1\n0\n1\n"))])[:-1024]
        ),
        "is a sparse file",
    ),
    "sparse file without its map": (
        spliced(pax(GNU__sparse__major=1, GNU__sparse__minor=0) + build([entry("good/a/s.png", b"9" * 512)])[:-1024]),
        "damaged or truncated",
    ),
    # Other containers.
    "gzip": (lambda good: zlib.compress(build(good), wbits=31), "is not an uncompressed tar"),
    "zip": (lambda good: b"PK\x03\x04" + bytes(600), "is not an uncompressed tar"),
    "empty file": (lambda good: b"", "is not an uncompressed tar"),
    "zeros": (lambda good: bytes(10_240), "must begin with <dataset_name>/dataset.json"),
    "text": (lambda good: b"accuracy 0.96\n" * 100, "is not an uncompressed tar"),
    # Bombs, and sizes that make a reader run in circles.
    "huge image": (spliced(raw_header("good/a/x.png", 2**60)), "has 1152921504606846976 bytes according to its header"),
    "huge table": (
        lambda good: build(good[:-1])[:-1024] + raw_header("good/samples.csv", 2**60),
        "bytes according to its header",
    ),
    "huge description": (
        lambda good: raw_header("good/dataset.json", 2**60) + bytes(1024),
        "bytes according to its header",
    ),
    "description over its limit": (
        lambda good: build([entry("good/dataset.json", b" " * (header.MAX_HEADER_BYTES + 1)), *good[1:]]),
        "the limit is",
    ),
    "size below 0": (spliced(raw_header("good/a/x.png", -1024)), "has -1024 bytes according to its header"),
    "table of a size below 0": (
        lambda good: build(good[:-1])[:-1024] + raw_header("good/samples.csv", -1024),
        "has -1024 bytes according to its header",
    ),
    "size below 0 in an extended header": (
        spliced(pax(size=-2048) + raw_header("good/a/x.png", 0)),
        "has -2048",
    ),
    "extended header of a size below 0": (
        spliced(raw_header("good/a/x.png", -512, tarfile.XHDTYPE)),
        "The header of a name says -512 bytes",
    ),
    "huge extended header": (spliced(raw_header("n", 2**33, tarfile.XHDTYPE)), "The header of a name says"),
    "huge long name": (spliced(raw_header("n", 2**33, tarfile.GNUTYPE_LONGNAME)), "The header of a name says"),
    "global header": (spliced(raw_header("g", 0, tarfile.XGLTYPE)), "link, a device"),
    "extended header without end": (spliced(pax(path="good/a/x.png") * 3_000), "damaged or truncated"),
    "image that fills the memory": (with_png(giant_png()), "8-bit L PNG of 3x3 pixels"),
    "image of more bytes than its pixels": (with_png(bytes(100_000)), "an image of its shape has at most"),
    "too many images": (
        image_first(*(entry(f"good/a/{place}.png", b"x") for place in range(9))),
        "good/a has more than the 2 images",
    ),
    "more images than the table": (
        lambda good: build(described(good, counts=[2, 2])),
        "has 3 images; dataset.json says 4",
    ),
    "row without end": (
        lambda good: build(
            table(described(good, counts=[2, 1]), rows(good)[0] + "a," * (3 * header.MAX_ROW_BYTES // 2))
        ),
        "has more than 16384 characters",
    ),
    "field without end": (
        lambda good: build(table(good, rows(good)[0] + '"' + "\n" * (3 * header.MAX_ROW_BYTES))),
        "has more than 16384 characters",
    ),
    "table over its limit": (lambda good: build(table(good, "x" * 5 * header.MAX_ROW_BYTES)), "too many for 3 images"),
    # What dataset.json says.
    "description that is none": (lambda good: build([entry("good/dataset.json", b"[]"), *good[1:]]), "expected form"),
    "description that is no text": (
        lambda good: build([entry("good/dataset.json", b"\xff"), *good[1:]]),
        "expected form",
    ),
    "description without end": (
        lambda good: build([entry("good/dataset.json", b"[" * 100_000), *good[1:]]),
        "expected form",
    ),
    "counts without end": (
        lambda good: build([entry("good/dataset.json", good[0][1].replace(b"2,", b"1e999,")), *good[1:]]),
        "expected form",
    ),
    "counts below 0": (lambda good: build(described(good, counts=[4, -1])), "b has more than the -1 images"),
    "sides too large": (lambda good: build(described(good, image_shape=[50_000, 50_000, 1])), "image_shape must be"),
    "four channels": (lambda good: build(described(good, image_shape=[3, 3, 4])), "image_shape must be"),
    "two sides": (lambda good: build(described(good, image_shape=[3, 3])), "expected form"),
    "hostile class": (lambda good: build(described(good, class_names=["..", "b"])), "class name must be"),
    "hostile name": (lambda good: build(described(good, name="..")), "dataset_name must be one plain folder name"),
    "another folder": (
        lambda good: build(described(good, name="bad")),
        "the folder must have the name in dataset.json, 'bad'",
    ),
    "unknown split": (lambda good: build(described(good, split="x")), "split must be one of"),
    "class twice": (lambda good: build(described(good, class_names=["a", "a"])), "must be unique"),
    # What is in the wrong place, or missing.
    "unknown class": (
        image_first(entry("good/c/x.png", b"x")),
        "'good/c/x.png' is not <dataset_name>/<class>/<stem>.png",
    ),
    "no image": (image_first(entry("good/a/readme.txt", b"x")), "is not <dataset_name>"),
    "second description": (image_first(entry("good/dataset.json", b"{}")), "is not <dataset_name>"),
    "description last": (lambda good: build([*good[1:], good[0]]), "must begin with <dataset_name>/dataset.json"),
    "no description": (lambda good: build(good[1:]), "must begin with <dataset_name>/dataset.json"),
    "no table": (lambda good: build(good[:-1]), "is truncated: it ends before samples.csv"),
    "second table": (lambda good: build([*good, good[-1]]), "follows samples.csv, which must be the last"),
    "image behind the table": (lambda good: build([*good, entry("good/a/w.png", b"x")]), "follows samples.csv"),
    "image missing": (lambda good: build([*good[:2], *good[3:]]), "has 2 images; dataset.json says 3"),
    # What samples.csv says.
    "row missing": (lambda good: build(table(good, "".join(rows(good)[:-1]))), "does not list the images"),
    "row too many": (
        lambda good: build(table(good, "".join([*rows(good), rows(good)[-1]]))),
        "does not list the images",
    ),
    "rows in another order": (
        lambda good: build(table(good, "".join([rows(good)[0], *rows(good)[:0:-1]]))),
        "does not list the images",
    ),
    "row of another image": (
        lambda good: build(table(good, "".join(rows(good)).replace("a/y.png", "a/q.png"))),
        "does not list the images",
    ),
    "no rows": (lambda good: build(table(good, "")), "must begin with the columns path, label, source"),
    "other columns": (
        lambda good: build(table(good, "".join(rows(good)).replace("label", "class"))),
        "must begin with the",
    ),
    "row with too few fields": (
        lambda good: build(table(good, rows(good)[0] + "a/x.png,a\r\n")),
        "row 1 does not have a field for each column",
    ),
    "row with too many fields": (
        lambda good: build(table(good, rows(good)[0] + "a/x.png,a,f,1,2\r\n")),
        "row 1 does not have a field for each column",
    ),
    "table that is no text": (
        lambda good: build(table(good, good[-1][1].replace(b"from", b"fr\xffm"))),
        "cannot be read",
    ),
    "quote without end": (
        lambda good: build(table(good, "".join(rows(good)[:-1]) + '"b/z.png')),
        "cannot be read after",
    ),
    # Images.
    "image that is none": (
        with_png(b"GIF89a"),
        "'good/a/x.png' in hostile cannot be read: not an image of this dataset",
    ),
    "image of 0 bytes": (with_png(b""), "'good/a/x.png' in hostile cannot be read: empty"),
}


def read_all(path):
    with Dataset(path) as opened:
        return (
            opened.header,
            opened.labels.tolist(),
            [(sample.stem, sample.pixels.tolist()) for sample in opened.samples()],
        )


def test_the_dataset_that_the_hostile_ones_are_made_of_is_good(tmp_path, good):
    (tmp_path / "good").write_bytes(build(good))
    header, labels, images = read_all(tmp_path / "good")
    assert header.images == 3
    assert labels == [0, 0, 1]
    assert [stem for stem, _ in images] == ["x", "y", "z"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_fault_unsafe_tar_extraction(tmp_path, monkeypatch, good, kind):
    """The original called `extractall` on whatever tar a run had logged."""
    make, message = HOSTILE[kind]
    (tmp_path / "hostile").write_bytes(make(good))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tracemalloc.start()
    with pytest.raises(DatasetError) as error:
        read_all(tmp_path / "hostile")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "hostile"]
    assert peak < 3 * header.MAX_HEADER_BYTES


def test_a_tar_cut_short_anywhere_is_refused(tmp_path, good):
    """At every byte where a write or a download can end; the zeros behind the last row hold nothing."""
    whole = build(good)
    end = len(whole) - 1024 - (-good[-1][0].size % 512)
    path = tmp_path / "short"
    for size in sorted({*range(0, end, 512), *range(1, end, 97), end - 1}):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError):
            read_all(path)
    for size in range(end, len(whole) + 1, 64):
        path.write_bytes(whole[:size])
        with contextlib.suppress(DatasetError):  # either is right: nothing is missing
            assert read_all(path)[1] == [0, 0, 1]


def test_a_tar_whose_end_was_never_written_is_refused(tmp_path, good):
    """A crash or a full disk can leave a file of the right size whose end is zeros."""
    whole = build(good)
    end = len(whole) - 1024 - (-good[-1][0].size % 512)
    for size in range(0, end, 128):
        (tmp_path / "zeros").write_bytes(whole[:size] + bytes(len(whole) - size))
        with pytest.raises(DatasetError):
            read_all(tmp_path / "zeros")


@settings(relaxed, max_examples=300)
@given(st.data())
def test_no_damage_passes_for_other_images_or_labels(good, data):
    """Whatever byte changes: a DatasetError, or the images and labels that were written."""
    whole = bytearray(build(good))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "damaged").write_bytes(whole)
        try:
            _, labels, images = read_all(Path(folder, "damaged"))
        except DatasetError:
            return
        Path(folder, "damaged").write_bytes(build(good))
        assert (labels, images) == read_all(Path(folder, "damaged"))[1:]


@settings(relaxed, max_examples=300)
@given(st.binary(max_size=2048), st.integers(0, 5))
@example(b"", 0)
def test_no_bytes_at_all_raise_anything_but_a_dataset_error(good, junk, place):
    whole = build(good[:place])[:-1024] + junk + build(good[place:])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "junk").write_bytes(whole)
        with contextlib.suppress(DatasetError):
            read_all(Path(folder, "junk"))


def test_the_dataset_name_must_be_that_of_the_folder(tmp_path, good):
    (tmp_path / "good").write_bytes(build(good))
    with Dataset(tmp_path / "good", "good") as opened:
        assert opened.header.name == "good"
    with pytest.raises(DatasetError) as error:
        Dataset(tmp_path / "good", "fgm")
    assert str(error.value) == "dataset_name must be a folder in the tar: 'good'. Received: dataset_name='fgm'"


def test_a_missing_file_is_reported_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        Dataset(tmp_path / "missing")


def test_a_tar_that_other_programs_wrote_is_taken(tmp_path, good):
    """Somebody may repack a dataset: other formats, times and owners do no harm."""
    for form in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "repacked", "w", format=form) as tar:
            for member, content in good:
                member = tarfile.TarInfo(member.name)
                member.size, member.mtime, member.uname, member.mode = len(content), 1.5e9 + 0.25, "me", 0o755
                tar.addfile(member, io.BytesIO(content))
        assert read_all(tmp_path / "repacked")[1] == [0, 0, 1]


def aimed_at(header, defense):
    entry = {"stage": "fgm", "kind": "attack", "parameters": {}, "defense": {"stage": defense, "parameters": {}}}
    return header.derive(name=f"fgm_aware_of_{defense}", prefix="adv_", entry=entry)


def test_a_stage_leaves_out_what_awaits_another_defense(make_dataset, random_pixels, tmp_path):
    with Dataset(make_dataset(random_pixels(2, (4, 4, 1)))) as clean:
        samples = list(clean.samples())
        headers = [clean.header, *(aimed_at(clean.header, name) for name in ("jpeg_compression", "spatial_smoothing"))]
    several, aimed, single = (tmp_path / f"{name}.tar" for name in ("several", "aimed", "single"))
    writer.write_all(several, [(header, samples) for header in headers])
    writer.write_all(aimed, [(header, samples) for header in headers[1:]])
    writer.write(single, headers[1], samples)

    def names(tars, defense=""):
        return [dataset.header.name for dataset in Dataset.to_work_on(tars, defense)]

    assert names([several]) == [clean.header.name]
    assert names([several, aimed], "jpeg_compression") == [
        clean.header.name,
        "fgm_aware_of_jpeg_compression",
        "fgm_aware_of_jpeg_compression",
    ]
    assert names([single]) == ["fgm_aware_of_jpeg_compression"]  # asked for by itself
    with pytest.raises(DatasetError, match=r"aimed\.tar must contain a dataset that awaits no other defense"):
        names([aimed])


@pytest.mark.parametrize("entry", [{"stage": "fgm"}, {"kind": "attack"}, {"stage": "a", "kind": "b", "defense": "c"}])
def test_provenance_without_what_is_read_of_it_is_refused(make_dataset, random_pixels, entry):
    with Dataset(make_dataset(random_pixels(1, (2, 2, 1)))) as one:
        content = json.loads(one.header.to_json()) | {"provenance": [entry]}
    with pytest.raises(DatasetError, match="does not have the expected form"):
        Header.from_json(json.dumps(content).encode())


def test_headers_of_a_tar_are_bounded_together(make_dataset, random_pixels, tmp_path, monkeypatch):
    pixels = random_pixels(1, (2, 2, 1))
    tar = several(tmp_path / "both.tar", make_dataset, first=pixels, second=pixels)
    with Dataset(tar, "first") as one:
        header_bytes = len(one.header.to_json())
    monkeypatch.setattr(dataset, "MAX_HEADER_BYTES", header_bytes + 10)
    with pytest.raises(DatasetError, match="and the headers before it have"):
        Dataset.all_in(tar)
