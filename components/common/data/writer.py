"""Writes datasets into a tar, image by image."""

import csv
import io
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np

from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data.header import (
    COLUMNS,
    HEADER,
    ROWS,
    Header,
    Sample,
    forget_members,
)
from evasion.components.common.data.images import encode_png
from evasion.components.common.data.pixels import ahead
from evasion.components.common.files import replacing


def write(path: Path, header: Header, samples: Iterable[Sample]) -> None:
    """Write a tar of one dataset; see `write_all`."""
    write_all(path, [(header, samples)])


def write_all(path: Path, datasets: Iterable[tuple[Header, Iterable[Sample]]]) -> None:
    """Write a tar of one dataset or several. The file appears under its name only when it is complete.

    Images are encoded on threads while `samples` computes the next ones; at most `AHEAD_BYTES` of them wait in memory.

    Args:
        path: Where to write the tar.
        datasets: The header and the images of each dataset, in the order in which they are stored. The counts in the
            header must be those of the images. A dataset is requested after the previous one is written.

    Raises:
        ValueError: If two datasets have the same name.
        RuntimeError: If the number or the shape of the images differs from the header.
    """
    written: set[str] = set()
    with (
        replacing(path) as temporary,
        temporary.open("wb", buffering=1 << 20) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for header, samples in datasets:
            if header.name in written:
                raise ValueError(f"Datasets in a tar must have different names. Received twice: {header.name}")
            written.add(header.name)
            _write_dataset(tar, header, samples, path.parent)


def _write_dataset(tar: tarfile.TarFile, header: Header, samples: Iterable[Sample], folder: Path) -> None:
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
            raise RuntimeError(f"{header.name}: wrote {written} images of the classes instead of {[*header.counts]}")
        if rows is None:
            csv.DictWriter(table, COLUMNS).writeheader()
        table.flush()
        with open(table.fileno(), "rb", closefd=False) as content:
            size = content.seek(0, io.SEEK_END)
            content.seek(0)
            _add(tar, f"{header.name}/{ROWS}", content, size)


def _add(tar: tarfile.TarFile, name: str, content: bytes | io.BufferedReader, size: int = -1) -> None:
    member = tarfile.TarInfo(name)  # without time, user or mode, so that the same images give the same bytes
    member.size = len(content) if isinstance(content, bytes) else size
    tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else content)
    forget_members(tar)
