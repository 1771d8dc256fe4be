"""The format of the dataset artifact: one uncompressed tar of 8-bit PNGs, read and written as a stream.

It contains one dataset or several, one after the other. Each has these members, in this order:

    <name>/dataset.json            description and origin of the images (`Header`)
    <name>/<class>/<stem>.png      8-bit gray or RGB, lossless
    <name>/samples.csv             a row per image: path, label, source, and the columns that stages add

The tar is never unpacked. Opening it checks every member once (names, types, sizes, counts), so that a hostile or
damaged file is rejected before any image is used. This keeps 20 bytes per image in memory.
"""

import dataclasses
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

from evasion.components.common.data import header_file, provenance
from evasion.components.common.data.pixels import Pixels

TRAINING, TESTING = "training", "testing"
SPLITS = (TRAINING, TESTING)

HEADER = "dataset.json"

ROWS = "samples.csv"

COLUMNS = ("path", "label", "source")

MAX_HEADER_BYTES = 16 << 20

MAX_ROW_BYTES = 16 << 10

MAX_NAME_BYTES = 8 << 10

MAX_DATASETS = 256  # in a tar; their headers are in memory

MAX_SIDE = 2048  # of an image; hundreds of images are in memory at once, and no classifier here takes larger ones

SAFE_FOLDER = re.compile(r"(?!\.\.?$)[^/\\\x00-\x1f\x7f\ud800-\udfff]+")


class DatasetError(ValueError):
    """A dataset artifact is damaged or hostile, or the file is not a dataset artifact."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """The content of `dataset.json`.

    Attributes:
        name: The folder inside the tar (the seed's `dataset_name`).
        class_names: The classes in index order. A class without an image keeps its index.
        counts: The number of images of each class, in the same order.
        image_shape: (height, width, channels), channels 1 or 3.
        split: `training` or `testing`. `apply_fit` refers to the first, `apply_predict` to the second.
        prefix: The prefix that stages have added to each file name, such as `def_adv_`.
        provenance: An entry for each stage, the oldest first: stage, kind (load, attack, defense), parameters, seed,
            versions, and the sha256 of the dataset and the model that it used.
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
            raise DatasetError("Class names must be unique and each must have a count.")
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
        """The number of images."""
        return sum(self.counts)

    @property
    def title(self) -> str:
        """The stages applied to the images, the last first: `clean`, `fgm`, `jpeg_compression fgm aware`."""
        attacks, defenses = [], []
        for entry in self.provenance:
            if entry["kind"] == provenance.ATTACK:
                attacks.append(f"{entry['stage']} aware" if entry.get("defense") else str(entry["stage"]))
            elif entry["kind"] == provenance.DEFENSE:
                defenses.append(str(entry["stage"]))
        return " ".join([*reversed(defenses), *reversed(attacks or ["clean"])])

    @property
    def awaited_defense(self) -> str:
        """The defense that the last stage, an attack, knows and that has not been applied yet, or `""`."""
        defense = self.provenance[-1].get("defense") if self.provenance else None
        return str(defense["stage"]) if defense else ""

    def original(self, path: str) -> str:
        """Return the path that an image had before any stage added a prefix to its name."""
        folder, _, name = path.rpartition("/")
        return f"{folder}/{name.removeprefix(self.prefix)}"

    def derive(
        self, *, name: str, prefix: str, entry: Mapping[str, Any], counts: Sequence[int] | None = None
    ) -> "Header":
        """Return the header of a dataset that a stage derives from this one."""
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
        """Read `dataset.json`; raise a `DatasetError` if its content is invalid."""
        try:
            content = header_file.parse(text)
        except ValueError as error:
            raise DatasetError(f"{HEADER} does not have the expected form: {error}") from error
        return cls(
            name=content["name"],
            class_names=tuple(content["class_names"]),
            counts=tuple(content["counts"]),
            image_shape=tuple(content["image_shape"]),
            split=content["split"],
            prefix=content["prefix"],
            provenance=tuple(content["provenance"]),
        )


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with its row of `samples.csv`.

    Attributes:
        label: Index of its class in `Header.class_names`.
        stem: File name without folder and extension.
        pixels: uint8, (height, width, channels).
        source: Its origin: the path in the parent dataset, or the file that was loaded.
        fields: Further columns of `samples.csv`. Every sample of a dataset has the same ones.
        index: Its index in the dataset that it was read from.
    """

    label: int
    stem: str
    pixels: Pixels
    source: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    index: int = -1


def stem_of(path: str) -> str:
    """Return the file name of `<class>/<stem>.png` without its extension."""
    return path.rpartition("/")[2].removesuffix(".png")


def forget_members(tar: tarfile.TarFile) -> None:
    """Clear tarfile's list of members: memory must not grow with the number of images."""
    tar.members.clear()  # type: ignore[attr-defined]
