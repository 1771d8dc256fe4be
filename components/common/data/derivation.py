"""Derives datasets from datasets, image by image, for attacks and defenses."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from evasion.components.common.concurrency import ordered_map, prefetched
from evasion.components.common.data import distances, writer
from evasion.components.common.data.header import Header, Sample
from evasion.components.common.data.pixels import Pixels, ahead
from evasion.components.common.progress import track


@dataclasses.dataclass(frozen=True)
class DerivedImage:
    """One image of the new dataset.

    Attributes:
        parent: The image that it is derived from.
        pixels: Its pixels, uint8.
        suffix: Appended to the file name if one image becomes several.
        fields: Columns of `samples.csv` to add to those of the parent.
    """

    parent: Sample
    pixels: Pixels
    suffix: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Derived:
    """A dataset that a stage derives.

    Attributes:
        header: Its description.
        prefix: Prefix of each file name.
        batches: Its images, several at a time; nothing is computed before they are requested.
        summary: Summary of the distances between the images and their parents, filled while they are written.
    """

    header: Header
    prefix: str
    batches: Iterable[Sequence[DerivedImage]]
    summary: distances.Summary = dataclasses.field(default_factory=distances.Summary)

    def samples(self, unit: str) -> Iterator[Sample]:
        """Yield the images as they are saved.

        The distances are those of the 8-bit images; they are columns of the image's row as well. A batch is computed
        while the previous one is measured, encoded and written.

        Args:
            unit: The name of the images in the progress report.
        """
        with (
            closing(prefetched(self.batches)) as computed,
            closing(
                ordered_map(self._sample, chain.from_iterable(computed), **ahead(self.header.image_shape))
            ) as measured,
        ):
            for sample in track(measured, self.header.images, unit):
                self.summary.add(sample.fields)
                yield sample

    def _sample(self, change: DerivedImage) -> Sample:
        parent = change.parent
        measured = distances.between(parent.pixels, change.pixels)
        fields = {**parent.fields, **change.fields, **measured}
        return Sample(parent.label, f"{self.prefix}{parent.stem}{change.suffix}", change.pixels, parent.source, fields)


def write(output: Path, derived: Sequence[Derived]) -> dict[str, float]:
    """Write datasets into one tar.

    Returns:
        The summaries of distances, flat: those of the first dataset as `l_2_norm_mean` and so on, those of a further
        dataset with its name as a prefix, as `fgm_aware_of_jpeg_compression/l_2_norm_mean`.
    """
    several = len(derived) > 1
    units = [f"images of {dataset.header.name}" if several else "images" for dataset in derived]
    writer.write_all(
        output, ((dataset.header, dataset.samples(unit)) for dataset, unit in zip(derived, units, strict=True))
    )
    flat: dict[str, float] = {}
    for index, dataset in enumerate(derived):
        prefix = f"{dataset.header.name}/" if index else ""
        flat |= {f"{prefix}{name}": value for name, value in distances.flat(dataset.summary.describe()).items()}
    return flat
