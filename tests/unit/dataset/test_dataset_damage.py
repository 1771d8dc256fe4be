"""Damaged and hostile tars are refused."""

import contextlib
import io
import json
import struct
import tarfile
import tempfile
import tracemalloc
import zlib
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import relaxed, several
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evasion.components.common.data import dataset, header, writer
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.distances import DISTANCES
from evasion.components.common.data.header import DatasetError, Header, Sample
from evasion.components.common.data.rows import has_distances


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
            Sample(label, stem, rng.integers(0, 256, (3, 3, 1), dtype=np.uint8), "from", {"note": 0.5})
            for label, stem in ((0, "x"), (0, "y"), (1, "z"))
        ],
    )
    return members(path)


def described(good, **changes):
    """The good dataset with another dataset.json."""
    text = json.dumps({**json.loads(good[0][1]), **changes})
    return [entry("good/dataset.json", text.encode()), *good[1:]]


def redescribed(good, **changes):
    return build(described(good, **changes))


ENTRY = {"stage": "fgm", "kind": "attack", "parameters": {}, "seed": 1, "versions": {}, "parent_sha256": None}


def measured(good, value, **more):
    """The good table with all distances, of which each has this value, and more columns."""
    columns = dict.fromkeys(DISTANCES, value) | more
    first, *others = (line.rsplit(",", 1)[0] for line in rows(good))
    lines = [f"{first},{','.join(columns)}", *(f"{line},{','.join(columns.values())}" for line in others)]
    return "".join(f"{line}\r\n" for line in lines)


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
    "counts below 0": (
        lambda good: build(described(good, counts=[4, -1])),
        "'counts.1': Input should be greater than or equal to 0 (in hostile)",
    ),
    **{
        f"{field} is {value!r}": (partial(redescribed, **{field: value}), f"expected form: '{field}': Input should be")
        for field, values in {
            "name": (None, 1),
            "class_names": (None, "ab"),
            "counts": (None, 3, {"a": 2}),
            "image_shape": (None, 3),
            "split": (None,),
            "prefix": (None, 0),
            "provenance": (None, "x", {"0": {}}),
        }.items()
        for value in values
    },
    **{
        f"provenance without {field}": (
            partial(redescribed, provenance=[{name: value for name, value in ENTRY.items() if name != field}]),
            f"'provenance.0.{field}': Field required",
        )
        for field in ("stage", "kind")
    },
    **{
        f"provenance whose {field} is {value!r}": (
            partial(redescribed, provenance=[ENTRY | {field: value}]),
            f"'provenance.0.{field}",
        )
        for field, value in {
            "kind": "x",
            "stage": "<b>",
            "parameters": [],
            "seed": "1",
            "versions": {"numpy": 2},
            "parent_sha256": 5,
            "iterates": "yes",
            "defense": "jpeg",
            "shard": 1,
            "skipped": [],
        }.items()
    },
    "provenance that is no object": (partial(redescribed, provenance=["x"]), "'provenance.0': Input should be"),
    "defense without stage": (
        partial(redescribed, provenance=[ENTRY | {"defense": {}}]),
        "'provenance.0.defense.stage': Field required",
    ),
    "parameter that no JSON can hold": (
        lambda good: build(
            [entry("good/dataset.json", good[0][1].replace(b'"split"', b'"x": 1e999, "split"')), *good[1:]]
        ),
        "expected form: Out of range float",
    ),
    "prefix that is a path": (partial(redescribed, prefix="../"), "'prefix': String should match"),
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
    "distance that is no number": (
        lambda good: build(table(good, measured(good, "x"))),
        "samples.csv: l_1_norm in row 1 must be a finite number. Received: 'x'",
    ),
    "distance without end": (lambda good: build(table(good, measured(good, "1e999"))), "l_1_norm in row 1 must be"),
    "flag that is none": (
        lambda good: build(table(good, measured(good, "1", zero_gradient="2"))),
        "zero_gradient in row 1 must be 0 or 1. Received: '2'",
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


def test_the_types_of_an_entry_are_those_of_the_results():
    from evasion.components.common.data import header_file
    from evasion.components.common.results.treatments import ProvenanceEntry

    assert [field.name for field in fields(header_file._Entry)] == [field.name for field in fields(ProvenanceEntry)]


def test_distances_are_all_there_or_none():
    assert has_distances(dict.fromkeys(DISTANCES, "1"))
    assert not has_distances({"note": "1"})
    with pytest.raises(DatasetError, match="It lacks l_2_norm"):
        has_distances({"l_1_norm": "1"})
