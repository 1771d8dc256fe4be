"""Reads the datasets in a tar, image by image."""

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
from evasion.components.common.data.rows import check_row
from evasion.components.common.files import replacing

COPIED_BYTES = 1 << 20


class _Member(tarfile.TarInfo):
    """A member header, checked before tarfile acts on it.

    With a negative size tarfile loops forever, and it reads header extensions as a whole. Therefore only the header of
    a plain file is accepted, and the two extensions that contain its long name.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if not 0 <= member.size <= MAX_NAME_BYTES:
                raise DatasetError(f"The header of a name says {member.size} bytes; the limit is {MAX_NAME_BYTES}.")
        elif member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise DatasetError(f"{member.name!r} is a link, a device or a folder; only plain files are allowed.")
        return member


@dataclasses.dataclass
class _Location:
    """The location of a dataset and its images in a tar, from a scan of every member.

    Attributes:
        header: The dataset's description.
        start, end: The range of bytes that the dataset occupies.
        offsets, sizes, labels: Those of each image, in order.
        table: The member `samples.csv`.
        paths: The hash of the images' paths, which the rows of the table must contain.
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
    """A dataset in a tar, for reading. Open it as a context manager.

    Args:
        path: The tar.
        name: The `dataset_name` to read; `""` for the only dataset of the tar.

    Raises:
        DatasetError: If the tar is damaged or truncated, contains anything but datasets, has no dataset of this name,
            or has several while the name is empty.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        locations = _scan(path)
        names = [location.header.name for location in locations]
        if name and name not in names:
            raise DatasetError(
                f"dataset_name must be a folder in the tar: {', '.join(map(repr, names))}. "
                f"Received: dataset_name={name!r}"
            )
        if not name and len(names) > 1:
            raise DatasetError(f"dataset_name must be given for {path.name}, which contains {', '.join(names)}.")
        self._set(path, locations[names.index(name) if name else 0])

    @classmethod
    def all_in(cls, path: Path) -> list[Self]:
        """Return every dataset of a tar, in order, not yet opened.

        Raises:
            DatasetError: If the tar is damaged or truncated, or contains anything but datasets.
        """
        datasets = []
        for location in _scan(path):
            dataset = cls.__new__(cls)
            dataset._set(path, location)
            datasets.append(dataset)
        return datasets

    @classmethod
    def to_work_on(cls, tars: Iterable[Path], defense: str = "") -> list[Self]:
        """Return the datasets of several tars that a stage has to process, in order, not yet opened.

        If a tar has several datasets, those of attacks that know a defense are left out until that defense is applied.

        Args:
            tars: The tars.
            defense: The stage's own name if it is a defense: datasets of attacks that know it are kept.

        Raises:
            DatasetError: If no dataset is left, or a tar contains anything but datasets.
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
            raise DatasetError(f"{names} must contain a dataset that awaits no other defense. Received: none")
        return chosen

    def _set(self, path: Path, location: _Location) -> None:
        self.path = path
        self.header = location.header
        self._location = location
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
        """The hash of the dataset's bytes in the tar. It does not depend on the tar's other datasets."""
        if not self._sha256:
            digest = hashlib.sha256()
            for block in self._blocks():
                digest.update(block)
            self._sha256 = digest.hexdigest()
        return self._sha256

    def copy_to(self, path: Path) -> None:
        """Write a tar of this dataset alone. The file appears under its name only when it is complete."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            for block in self._blocks():
                file.write(block)
            file.write(bytes(2 * tarfile.BLOCKSIZE))  # marks the end of a tar

    def _blocks(self) -> Iterator[bytes]:
        for start in range(self._location.start, self._location.end, COPIED_BYTES):
            yield os.pread(self._file.fileno(), min(COPIED_BYTES, self._location.end - start), start)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The class index of every image, in order, shape (images,)."""
        return np.frombuffer(self._location.labels, dtype=np.int32)

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
        """Return the image at an index. Several threads may call it at once."""
        size, offset = self._location.sizes[index], self._location.offsets[index]
        try:
            return decode_png(os.pread(self._file.fileno(), size, offset), self.header.image_shape)
        except UnreadableImage as error:
            header = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
            name = _Member.frombuf(header, "utf-8", "replace").name
            raise DatasetError(f"{name!r} in {self.path.name} cannot be read: {error}") from error

    def _sample(self, indexed_row: tuple[int, dict[str, str]]) -> Sample:
        index, row = indexed_row
        label, path = self._location.labels[index], row["path"]
        fields = {name: value for name, value in row.items() if name not in COLUMNS}
        return Sample(label, stem_of(path), self.pixels(index), path, fields, index)

    def _rows(self) -> Iterator[dict[str, str]]:
        """Yield the rows of `samples.csv`, and check that they match the images' paths."""
        paths = hashlib.sha256()
        count = length = 0
        table = self._location.table

        def lines(text: io.TextIOWrapper) -> Iterator[str]:
            """Yield the lines, and limit the length of a row: a hostile row may span the whole file."""
            nonlocal length
            while line := text.readline(MAX_ROW_BYTES):
                length += len(line)
                if length > MAX_ROW_BYTES:
                    raise DatasetError(f"{ROWS}: row {count + 1} has more than {MAX_ROW_BYTES} characters.")
                yield line

        try:
            content = io.BufferedReader(_Range(self._file.fileno(), table.offset_data, table.size))
            with io.TextIOWrapper(content, encoding="utf-8", newline="") as text:
                rows = csv.DictReader(lines(text), strict=True)
                if tuple(rows.fieldnames or ())[: len(COLUMNS)] != COLUMNS:
                    raise DatasetError(f"{ROWS} must begin with the columns {', '.join(COLUMNS)}.")
                for row in rows:
                    count, length = count + 1, 0
                    if count > self.header.images:
                        break
                    if None in row or None in row.values():
                        raise DatasetError(f"{ROWS}: row {count} does not have a field for each column.")
                    check_row(count, row)
                    paths.update(row["path"].encode() + b"\n")
                    yield row
        except (csv.Error, UnicodeError) as error:
            raise DatasetError(f"{ROWS} cannot be read after row {count}: {error}") from error
        if count != self.header.images or paths.digest() != self._location.paths:
            raise DatasetError(f"{ROWS} does not list the images of {self.path.name} in their order.")


class _Range(io.RawIOBase):
    """A range of bytes of an open file. Reads do not move its position, so several ranges can be read at once."""

    def __init__(self, file: int, start: int, size: int) -> None:
        self._file, self._position, self._end = file, start, start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self._file, min(len(buffer), self._end - self._position), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _scan(path: Path) -> list[_Location]:
    """Read the header of every member of a tar once; return where its datasets are."""
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
                locations: list[_Location] = []
                header_bytes = 0
                tar_bytes = os.fstat(file.fileno()).st_size
                while (member := _next(tar, tar_bytes)) is not None:
                    if len(locations) == MAX_DATASETS:
                        raise DatasetError(f"{path.name} contains more than {MAX_DATASETS} datasets.")
                    header_bytes += member.size
                    if header_bytes > MAX_HEADER_BYTES:
                        raise DatasetError(
                            f"{member.name} and the headers before it have {header_bytes} bytes; "
                            f"the limit is {MAX_HEADER_BYTES}."
                        )
                    locations.append(_scan_dataset(path, tar, member, tar_bytes))
        except DatasetError:
            raise
        except (tarfile.TarError, EOFError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise DatasetError(f"{path.name} is not an uncompressed tar, is damaged or truncated: {error}") from error
        names = [location.header.name for location in locations]
        if len(set(names)) < len(names):
            raise DatasetError(f"{path.name} contains two datasets of the same name: {', '.join(names)}.")
        if not names:
            raise DatasetError(f"{path.name} must begin with <dataset_name>/{HEADER}.")
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, locations[-1].end) != bytes(tarfile.BLOCKSIZE):
            raise DatasetError(f"{path.name} is truncated: the end marker of the tar is missing.")
        return locations


def _scan_dataset(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, tar_bytes: int) -> _Location:
    """Read the header of every member of a dataset; `member` is the first. Return where the dataset is."""
    start = member.offset
    header = _read_header(path, tar, member)
    largest = _largest_png(header.image_shape)
    labels_of_folders = {f"{header.name}/{name}": index for index, name in enumerate(header.class_names)}
    offsets, sizes, labels = array("Q"), array("I"), array("i")
    counts = [0] * len(labels_of_folders)
    paths = hashlib.sha256()
    while True:
        entry = _next(tar, tar_bytes)
        if entry is None:
            raise DatasetError(f"{path.name} is truncated: it ends before {ROWS}.")
        if entry.name == f"{header.name}/{ROWS}":
            break
        folder, _, file = entry.name.rpartition("/")
        if folder not in labels_of_folders or not file.endswith(".png") or not SAFE_FOLDER.fullmatch(file):
            raise DatasetError(f"{entry.name!r} is not <dataset_name>/<class>/<stem>.png of a known class.")
        if entry.size > largest:
            raise DatasetError(f"{entry.name} has {entry.size} bytes; an image of its shape has at most {largest}.")
        label = labels_of_folders[folder]
        counts[label] += 1
        if counts[label] > header.counts[label]:
            raise DatasetError(f"{folder} has more than the {header.counts[label]} images of {HEADER}.")
        offsets.append(entry.offset_data)
        sizes.append(entry.size)
        labels.append(label)
        paths.update(f"{header.class_names[label]}/{file}\n".encode())
    if entry.size > MAX_ROW_BYTES * (header.images + 1):
        raise DatasetError(f"{ROWS} has {entry.size} bytes, too many for {header.images} images.")
    if tuple(counts) != header.counts:
        raise DatasetError(f"{path.name} has {sum(counts)} images; {HEADER} says {header.images}.")
    end = entry.offset_data + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return _Location(header, start, end, offsets, sizes, labels, entry, paths.digest())


def _read_header(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Header:
    """Return the dataset's header that `member` contains."""
    if not member.name.endswith(f"/{HEADER}"):
        raise DatasetError(
            f"{path.name} must begin with <dataset_name>/{HEADER}."
            if member.offset == 0
            else f"{member.name!r} follows {ROWS}, which must be the last file of a dataset."
        )
    content = tar.extractfile(member)
    assert content is not None  # noqa: S101  (a regular file has content)
    try:
        header = Header.from_json(content.read())
    except DatasetError as error:
        raise DatasetError(f"{error} (in {path.name})") from error
    if member.name != f"{header.name}/{HEADER}":
        raise DatasetError(f"{member.name}: the folder must have the name in {HEADER}, {header.name!r}.")
    return header


def _largest_png(image_shape: tuple[int, int, int]) -> int:
    """Return a bound on the size of a PNG, which holds even if its pixels cannot be compressed."""
    height, width, channels = image_shape
    return 2 * height * (width * channels + 1) + 4096


def _next(tar: tarfile.TarFile, tar_bytes: int) -> tarfile.TarInfo | None:
    """Return the next member, a plain file that is completely inside the tar."""
    member = tar.next()
    if member is None:
        return None
    forget_members(tar)
    if member.issparse():
        raise DatasetError(f"{member.name!r} is a sparse file; only plain files are allowed.")
    if not 0 <= member.size <= tar_bytes - member.offset_data:
        raise DatasetError(f"{member.name!r} has {member.size} bytes according to its header; the tar is shorter.")
    return member
