"""Reads the datasets of a tar, image by image."""

import csv
import dataclasses
import hashlib
import io
import os
import tarfile
from array import array
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data.header import (
    COLUMNS,
    HEADER,
    MAX_DATASETS,
    MAX_HEADER_BYTES,
    MAX_NAME_BYTES,
    MAX_ROW_BYTES,
    ROWS,
    SAFE_FOLDER,
    DatasetError,
    Header,
    Sample,
    forget_members,
    stem_of,
)
from evasion.components.common.data.images import UnreadableImage, decode_png
from evasion.components.common.data.pixels import Pixels, ahead
from evasion.components.common.files import replacing

COPIED_BYTES = 1 << 20


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
        return Sample(self._place.labels[index], stem_of(row["path"]), self.pixels(index), row["path"], fields, index)

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
    forget_members(tar)
    if member.issparse():
        raise DatasetError(f"{member.name!r} is a sparse file; only plain files are taken.")
    if not 0 <= member.size <= tar_bytes - member.offset_data:
        raise DatasetError(f"{member.name!r} says it has {member.size} bytes; they are not there.")
    return member
