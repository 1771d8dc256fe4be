"""The dataset artifact: one uncompressed tar of 8-bit PNGs, read and written as a stream.

It holds one dataset or several, one after the other. Layout of each, in this order:

    <name>/dataset.json            what the images are and where they come from (`Header`)
    <name>/<class>/<stem>.png      8-bit gray or RGB, lossless
    <name>/samples.csv             a row per image: path, label, source, then what stages recorded of it

The tar is never unpacked. Opening it looks at every member once (names, types, sizes, counts), so that a
hostile or damaged file is refused before any image is used; what is kept of that look is 20 bytes an image.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import tarfile
import tempfile
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evasion.components.common.concurrency import ordered_map
from evasion.components.common.files import replacing
from evasion.components.common.images import UnreadableImage, decode_png, encode_png

Pixels = npt.NDArray[np.uint8]
"""Images of shape (height, width, channels), or a batch of them, 8-bit."""
Floats = npt.NDArray[np.float32]
"""The same in [0, 1]."""

SPLITS = ("training", "testing")
HEADER = "dataset.json"
ROWS = "samples.csv"
COLUMNS = ("path", "label", "source")
COPIED_BYTES = 1 << 20
CHUNK_BYTES = 64 << 10  # of pixels that a thread takes at once
AHEAD_BYTES = 32 << 20  # of pixels, decoded and waiting for the next hand
MAX_HEADER_BYTES = 16 << 20
MAX_ROW_BYTES = 16 << 10
MAX_NAME_BYTES = 8 << 10
MAX_DATASETS = 256  # in a tar: their headers are in memory
MAX_SIDE = 2048  # of an image; some hundreds of them are in memory at once, and no classifier here takes larger ones
SAFE_FOLDER = re.compile(r"(?!\.\.?$)[^/\\\x00-\x1f\x7f\ud800-\udfff]+")


def ahead(image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return how `ordered_map` shall work on images of this shape: far enough ahead, in bounded memory.

    Small images are soon done, so that two threads would mostly wait for the interpreter: they get one, and many of
    them are handed over at once.
    """
    size = math.prod(image_shape)
    chunk = min(max(CHUNK_BYTES // size, 8), 64)
    return {
        "threads": 1 if size < CHUNK_BYTES // 8 else 2,
        "ahead": min(max(AHEAD_BYTES // size, 2 * chunk), 512),
        "chunk": chunk,
    }


class DatasetError(ValueError):
    """A dataset artifact that is damaged, hostile, or not one at all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What `dataset.json` holds.

    Attributes:
        name: The folder inside the tar (the seed's `dataset_name`).
        class_names: In index order. A class without an image keeps its index.
        counts: Images of each class, in the same order.
        image_shape: (height, width, channels), channels 1 or 3.
        split: `training` or `testing`: which of `apply_fit` and `apply_predict` speaks of these images.
        prefix: What the stages so far have put before each file name, such as `def_adv_`.
        provenance: An entry a stage, the oldest first: stage, kind (load, attack, defense), parameters,
            seed, versions, and the sha256 of the dataset and the model it used.
    """

    name: str
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    image_shape: tuple[int, int, int]
    split: str
    prefix: str = ""
    provenance: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not SAFE_FOLDER.fullmatch(self.name):
            raise DatasetError(f"dataset_name must be one plain folder name. Received: dataset_name={self.name!r}")
        for name in self.class_names:
            if not SAFE_FOLDER.fullmatch(name):
                raise DatasetError(f"A class name must be one plain folder name. Received: {name!r}")
        if len(set(self.class_names)) != len(self.class_names) or len(self.counts) != len(self.class_names):
            raise DatasetError("Class names must differ from each other and have a count each.")
        height, width, channels = self.image_shape
        if channels not in (1, 3) or not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise DatasetError(
                f"image_shape must be height and width, at most {MAX_SIDE} each, and 1 or 3 channels. "
                f"Received: image_shape={self.image_shape}"
            )
        if self.split not in SPLITS:
            raise DatasetError(f"split must be one of {', '.join(SPLITS)}. Received: split={self.split!r}")

    @property
    def images(self) -> int:
        """How many images the dataset holds."""
        return sum(self.counts)

    @property
    def title(self) -> str:
        """What was done to the images, the last first: `clean`, `fgm`, `jpeg_compression fgm aware`."""
        attacks, defenses = [], []
        for entry in self.provenance:
            if entry["kind"] == "attack":
                attacks.append(f"{entry['stage']} aware" if entry.get("defense") else str(entry["stage"]))
            elif entry["kind"] == "defense":
                defenses.append(str(entry["stage"]))
        return " ".join([*reversed(defenses), *reversed(attacks or ["clean"])])

    @property
    def awaited_defense(self) -> str:
        """The defense that the last stage, an attack, was aimed at and that the images have not met yet, or `""`."""
        known = self.provenance[-1].get("defense") if self.provenance else None
        return str(known["stage"]) if known else ""

    def original(self, path: str) -> str:
        """Return the path that an image had before any stage put a prefix before its name."""
        folder, _, name = path.rpartition("/")
        return f"{folder}/{name.removeprefix(self.prefix)}"

    def derive(
        self, *, name: str, prefix: str, entry: Mapping[str, Any], counts: Sequence[int] | None = None
    ) -> "Header":
        """Return the header of a dataset that a stage makes of this one."""
        return dataclasses.replace(
            self,
            name=name,
            prefix=prefix + self.prefix,
            provenance=(*self.provenance, entry),
            counts=self.counts if counts is None else tuple(counts),
        )

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read `dataset.json`; what is not of its form is a `DatasetError`."""
        try:
            found = json.loads(text)
            height, width, channels = (int(side) for side in found["image_shape"])
            header = cls(
                name=str(found["name"]),
                class_names=tuple(str(name) for name in found["class_names"]),
                counts=tuple(int(count) for count in found["counts"]),
                image_shape=(height, width, channels),
                split=str(found["split"]),
                prefix=str(found["prefix"]),
                provenance=tuple(dict(entry) for entry in found["provenance"]),
            )
            _ = header.title, header.awaited_defense  # what is read of the provenance is there
            return header
        except DatasetError:
            raise
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
            raise DatasetError(f"{HEADER} is not of the expected form: {error!r}") from error


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with what is known of it.

    Attributes:
        label: Index of its class in `Header.class_names`.
        stem: File name without folder and extension.
        pixels: uint8, (height, width, channels).
        source: Where it came from: path in the parent dataset, or the file that was loaded.
        fields: Further columns of `samples.csv`. Every sample of a dataset has the same ones.
        index: Its place in the dataset it was read from.
    """

    label: int
    stem: str
    pixels: Pixels
    source: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    index: int = -1


def to_float(pixels: Pixels) -> Floats:
    """Return 8-bit pixels as float32 in [0, 1]."""
    x = pixels.astype(np.float32)
    x /= np.float32(255)
    return x


def to_pixels(x: Floats) -> Pixels:
    """Return float pixels in [0, 1] as 8 bits, *rounded*: truncation would break an eps bound by a level."""
    levels = np.clip(x, np.float32(0), np.float32(1))
    levels *= np.float32(255)
    return np.rint(levels, out=levels).astype(np.uint8)


def write(path: Path, header: Header, samples: Iterable[Sample]) -> None:
    """Write a tar of one dataset; see `write_all`."""
    write_all(path, [(header, samples)])


def write_all(path: Path, datasets: Iterable[tuple[Header, Iterable[Sample]]]) -> None:
    """Write a tar of one dataset or several; the file appears under its name only when it is whole.

    Images are encoded on threads while `samples` computes the next ones; at most `AHEAD_BYTES` of them wait in memory.

    Args:
        path: Where to write the tar.
        datasets: Of each dataset its description and its images, in the order in which they are stored. The counts in
            the description must be those of the images. One is taken after the one before it is written.

    Raises:
        ValueError: If two datasets have one name.
        RuntimeError: If the images are not as many, or not of the shape, that their header says.
    """
    written: set[str] = set()
    with (
        replacing(path) as temporary,
        temporary.open("wb", buffering=1 << 20) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for header, samples in datasets:
            if header.name in written:
                raise ValueError(f"Datasets in one tar must have names of their own. Received twice: {header.name}")
            written.add(header.name)
            _write_one(tar, header, samples, path.parent)


def _write_one(tar: tarfile.TarFile, header: Header, samples: Iterable[Sample], folder: Path) -> None:
    written = [0] * len(header.class_names)

    def encoded(sample: Sample) -> tuple[Sample, bytes]:
        if sample.pixels.shape != header.image_shape or sample.pixels.dtype != np.uint8:
            raise RuntimeError(f"{sample.stem}: {sample.pixels.dtype} {sample.pixels.shape}, not {header.image_shape}")
        return sample, encode_png(sample.pixels)

    with (
        tempfile.TemporaryFile("w+", newline="", encoding="utf-8", dir=folder) as table,
        closing(ordered_map(encoded, samples, **ahead(header.image_shape))) as encoding,
    ):
        _add(tar, f"{header.name}/{HEADER}", header.to_json().encode())
        rows: csv.DictWriter[str] | None = None
        for sample, png in encoding:
            label = header.class_names[sample.label]
            name = f"{label}/{sample.stem}.png"
            _add(tar, f"{header.name}/{name}", png)
            row = {"path": name, "label": label, "source": sample.source, **sample.fields}
            if rows is None:
                rows = csv.DictWriter(table, row)
                rows.writeheader()
            rows.writerow(row)
            written[sample.label] += 1
        if tuple(written) != header.counts:
            raise RuntimeError(f"{header.name}: {sum(written)} images of {header.images} were written: {written}")
        if rows is None:
            csv.DictWriter(table, COLUMNS).writeheader()
        table.flush()
        with open(table.fileno(), "rb", closefd=False) as content:
            size = content.seek(0, io.SEEK_END)
            content.seek(0)
            _add(tar, f"{header.name}/{ROWS}", content, size)


def _add(tar: tarfile.TarFile, name: str, content: bytes | io.BufferedReader, size: int = -1) -> None:
    member = tarfile.TarInfo(name)  # no time, user or mode of this machine: same images, same bytes
    member.size = len(content) if isinstance(content, bytes) else size
    tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else content)
    _forget(tar)


def _stem(path: str) -> str:
    """Return the file name of `<class>/<stem>.png` without its ending."""
    return path.rpartition("/")[2].removesuffix(".png")


def _forget(tar: tarfile.TarFile) -> None:
    """Drop what tarfile remembers of every member: memory must not grow with the number of images."""
    tar.members.clear()  # type: ignore[attr-defined]


class _Member(tarfile.TarInfo):
    """A header in a tar, looked at before tarfile follows what it says.

    Of a size below 0 tarfile reads in circles, and what extends a header it reads whole. So the one kind of header is
    taken that describes a plain file, and the two that tell its long name.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if not 0 <= member.size <= MAX_NAME_BYTES:
                raise DatasetError(f"A name says it has {member.size} bytes; at most {MAX_NAME_BYTES} are read.")
        elif member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise DatasetError(f"{member.name!r} is a link, a device or a folder; only plain files are taken.")
        return member


@dataclasses.dataclass
class _Place:
    """Where a dataset and its images lie in a tar, as a look at every member found it.

    Attributes:
        header: The dataset's description.
        start, end: The bytes of the tar that are the dataset's.
        offsets, sizes, labels: Of each image, in order.
        table: The member `samples.csv`.
        paths: The hash of the images' paths, which the rows of the table must name.
    """

    header: Header
    start: int
    end: int
    offsets: "array[int]"
    sizes: "array[int]"
    labels: "array[int]"
    table: tarfile.TarInfo
    paths: bytes


class Dataset:
    """A dataset in a tar, for reading; open it as a context manager.

    Args:
        path: The tar.
        name: The `dataset_name` it must hold; `""` for the one that it holds, if it is only one.

    Raises:
        DatasetError: If the tar is damaged, cut short, holds anything but datasets, not one of this name, or several
            and no name is given.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        places = _scanned(path)
        names = [place.header.name for place in places]
        if name and name not in names:
            raise DatasetError(
                f"dataset_name must be a folder in the tar, of {', '.join(map(repr, names))}. "
                f"Received: dataset_name={name!r}"
            )
        if not name and len(names) > 1:
            raise DatasetError(f"dataset_name must be given for {path.name}, which holds {', '.join(names)}.")
        self._set(path, places[names.index(name) if name else 0])

    @classmethod
    def all_in(cls, path: Path) -> list[Self]:
        """Return every dataset of a tar, in order, not yet opened.

        Raises:
            DatasetError: If the tar is damaged, cut short, or holds anything but datasets.
        """
        datasets = []
        for place in _scanned(path):
            dataset = cls.__new__(cls)
            dataset._set(path, place)
            datasets.append(dataset)
        return datasets

    @classmethod
    def to_work_on(cls, tars: Iterable[Path], defense: str = "") -> list[Self]:
        """Return the datasets of several tars that a stage has to work on, in order, not yet opened.

        Of several in a tar those are left out that an attack aimed at a defense which they have not met.

        Args:
            tars: The tars.
            defense: The stage's own name if it is a defense: what is aimed at it is kept.

        Raises:
            DatasetError: If none is left, or a tar is none of datasets.
        """
        tars = list(tars)
        chosen = [
            dataset
            for tar in tars
            for datasets in [cls.all_in(tar)]
            for dataset in datasets
            if len(datasets) == 1 or dataset.header.awaited_defense in ("", defense)
        ]
        if not chosen:
            names = ", ".join(tar.name for tar in tars)
            raise DatasetError(f"{names} must hold a dataset that awaits no other defense. Received: none")
        return chosen

    def _set(self, path: Path, place: _Place) -> None:
        self.path = path
        self.header = place.header
        self._place = place
        self._sha256 = ""

    def __enter__(self) -> Self:
        self._file = self.path.open("rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self.header.images

    @property
    def sha256(self) -> str:
        """The hash of the dataset's bytes in the tar: the same whatever else the tar holds."""
        if not self._sha256:
            digest = hashlib.sha256()
            for block in self._blocks():
                digest.update(block)
            self._sha256 = digest.hexdigest()
        return self._sha256

    def copy_to(self, path: Path) -> None:
        """Write a tar of this dataset alone; the file appears under its name only when it is whole."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            for block in self._blocks():
                file.write(block)
            file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar

    def _blocks(self) -> Iterator[bytes]:
        for start in range(self._place.start, self._place.end, COPIED_BYTES):
            yield os.pread(self._file.fileno(), min(COPIED_BYTES, self._place.end - start), start)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The class index of every image, in order, shape (images,)."""
        return np.frombuffer(self._place.labels, dtype=np.int32)

    def samples(self) -> Generator[Sample, None, None]:
        """Yield every image in order with its row of `samples.csv`, decoding ahead on threads."""
        with closing(ordered_map(self._sample, enumerate(self._rows()), **ahead(self.header.image_shape))) as decoded:
            yield from decoded

    def batches(self, batch_size: int) -> Generator[list[Sample], None, None]:
        """Yield every image in order, `batch_size` at a time; the last batch may be smaller."""
        batch: list[Sample] = []
        with closing(self.samples()) as samples:
            for sample in samples:
                batch.append(sample)
                if len(batch) == batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def pixels(self, index: int) -> Pixels:
        """Return one image by its place; safe to call from several threads."""
        size, offset = self._place.sizes[index], self._place.offsets[index]
        try:
            return decode_png(os.pread(self._file.fileno(), size, offset), self.header.image_shape)
        except UnreadableImage as error:
            header = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
            name = _Member.frombuf(header, "utf-8", "replace").name
            raise DatasetError(f"{name!r} in {self.path.name} cannot be read: {error}") from error

    def _sample(self, numbered: tuple[int, dict[str, str]]) -> Sample:
        index, row = numbered
        fields = {name: value for name, value in row.items() if name not in COLUMNS}
        return Sample(self._place.labels[index], _stem(row["path"]), self.pixels(index), row["path"], fields, index)

    def _rows(self) -> Iterator[dict[str, str]]:
        """Yield the rows of `samples.csv`, holding them to the images' paths."""
        paths = hashlib.sha256()
        count = taken = 0
        table = self._place.table

        def lines(text: io.TextIOWrapper) -> Iterator[str]:
            """Yield the lines of one row after the other; a hostile row may claim the whole file."""
            nonlocal taken
            while line := text.readline(MAX_ROW_BYTES):
                taken += len(line)
                if taken > MAX_ROW_BYTES:
                    raise DatasetError(f"{ROWS}: row {count + 1} has more than {MAX_ROW_BYTES} characters.")
                yield line

        try:
            content = io.BufferedReader(_Range(self._file.fileno(), table.offset_data, table.size))
            with io.TextIOWrapper(content, encoding="utf-8", newline="") as text:
                rows = csv.DictReader(lines(text), strict=True)
                if tuple(rows.fieldnames or ())[: len(COLUMNS)] != COLUMNS:
                    raise DatasetError(f"{ROWS} must begin with the columns {', '.join(COLUMNS)}.")
                for row in rows:
                    count, taken = count + 1, 0
                    if count > self.header.images:
                        break
                    if None in row or None in row.values():
                        raise DatasetError(f"{ROWS}: row {count} has not as many fields as there are columns.")
                    paths.update(row["path"].encode() + b"\n")
                    yield row
        except (csv.Error, UnicodeError) as error:
            raise DatasetError(f"{ROWS} cannot be read behind row {count}: {error}") from error
        if count != self.header.images or paths.digest() != self._place.paths:
            raise DatasetError(f"{ROWS} does not name the images of {self.path.name} in their order.")


class _Range(io.RawIOBase):
    """Bytes of an open file, read without moving its position, so that several can be read at once."""

    def __init__(self, file: int, start: int, size: int) -> None:
        self._file, self._at, self._end = file, start, start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self._file, min(len(buffer), self._end - self._at), self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _scanned(path: Path) -> list[_Place]:
    """Look at every member of a tar once, and return where its datasets lie."""
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
                places: list[_Place] = []
                headers = 0
                size = os.fstat(file.fileno()).st_size
                while (member := _next(tar, size)) is not None:
                    if len(places) == MAX_DATASETS:
                        raise DatasetError(f"{path.name} holds more than {MAX_DATASETS} datasets.")
                    headers += member.size
                    if headers > MAX_HEADER_BYTES:
                        raise DatasetError(
                            f"{member.name} says, with those before it, it has {headers} bytes; "
                            f"at most {MAX_HEADER_BYTES} are read."
                        )
                    places.append(_scanned_one(path, tar, member, size))
        except DatasetError:
            raise
        except (tarfile.TarError, EOFError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise DatasetError(f"{path.name} is no uncompressed tar, is damaged or cut short: {error}") from error
        names = [place.header.name for place in places]
        if len(set(names)) < len(names):
            raise DatasetError(f"{path.name} holds two datasets of one name: {', '.join(names)}.")
        if not names:
            raise DatasetError(f"{path.name} must begin with <dataset_name>/{HEADER}.")
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, places[-1].end) != bytes(tarfile.BLOCKSIZE):
            raise DatasetError(f"{path.name} ends without the mark of a tar's end: it was cut short.")
        return places


def _scanned_one(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, tar_bytes: int) -> _Place:
    """Look at every member of a dataset, of which `member` is the first, and return where it lies."""
    offsets, sizes, labels = array("Q"), array("I"), array("i")
    start = member.offset
    if not member.name.endswith(f"/{HEADER}"):
        raise DatasetError(
            f"{path.name} must begin with <dataset_name>/{HEADER}."
            if start == 0
            else f"{member.name!r} follows {ROWS}, which must be the last of a dataset."
        )
    content = tar.extractfile(member)
    assert content is not None  # noqa: S101  (a regular file has content)
    header = Header.from_json(content.read())
    if member.name != f"{header.name}/{HEADER}":
        raise DatasetError(f"{member.name}: the folder must be the name in {HEADER}, {header.name!r}.")
    height, width, channels = header.image_shape
    largest = 2 * height * (width * channels + 1) + 4096  # a PNG that compresses to nothing less
    places = {f"{header.name}/{name}": index for index, name in enumerate(header.class_names)}
    counts = [0] * len(places)
    paths = hashlib.sha256()
    while True:
        found = _next(tar, tar_bytes)
        if found is None:
            raise DatasetError(f"{path.name} ends before {ROWS}: it was cut short.")
        if found.name == f"{header.name}/{ROWS}":
            break
        folder, _, file = found.name.rpartition("/")
        if folder not in places or not file.endswith(".png") or not SAFE_FOLDER.fullmatch(file):
            raise DatasetError(f"{found.name!r} is not <dataset_name>/<class>/<stem>.png of a known class.")
        if found.size > largest:
            raise DatasetError(f"{found.name} says it has {found.size} bytes; its shape allows {largest}.")
        label = places[folder]
        counts[label] += 1
        if counts[label] > header.counts[label]:
            raise DatasetError(f"{folder} has more images than the {header.counts[label]} of {HEADER}.")
        offsets.append(found.offset_data)
        sizes.append(found.size)
        labels.append(label)
        paths.update(f"{header.class_names[label]}/{file}\n".encode())
    if found.size > MAX_ROW_BYTES * (header.images + 1):
        raise DatasetError(f"{ROWS} says it has {found.size} bytes, too many for {header.images} images.")
    if tuple(counts) != header.counts:
        raise DatasetError(f"{path.name} has {sum(counts)} images, {HEADER} says {header.images}.")
    end = found.offset_data + -(-found.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return _Place(header, start, end, offsets, sizes, labels, found, paths.digest())


def _next(tar: tarfile.TarFile, tar_bytes: int) -> tarfile.TarInfo | None:
    """Return the next member, a plain file that lies in the tar as a whole."""
    member = tar.next()
    if member is None:
        return None
    _forget(tar)
    if member.issparse():
        raise DatasetError(f"{member.name!r} is a sparse file; only plain files are taken.")
    if not 0 <= member.size <= tar_bytes - member.offset_data:
        raise DatasetError(f"{member.name!r} says it has {member.size} bytes; they are not there.")
    return member
