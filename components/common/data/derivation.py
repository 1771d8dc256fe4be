"""Datasets derived from datasets, image by image: what attacks and defenses share."""

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
class Change:
    """One image of the new dataset.

    Attributes:
        parent: The image that it was made of.
        pixels: What it has become, uint8.
        suffix: Put behind the file name, where one image becomes several.
        fields: Columns of `samples.csv` to add to those of the parent.
    """

    parent: Sample
    pixels: Pixels
    suffix: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Derived:
    """A dataset that a stage makes.

    Attributes:
        header: Its description.
        prefix: What stands before the name of each file.
        batches: Its images, some at a time; nothing is computed before they are asked for.
        summary: Of the distances of the images to their parents; filled while they are written.
    """

    header: Header
    prefix: str
    batches: Iterable[Sequence[Change]]
    summary: distances.Summary = dataclasses.field(default_factory=distances.Summary)

    def samples(self, what: str) -> Iterator[Sample]:
        """Yield the images as they are saved.

        The distances are those of the 8-bit images; each stands in the image's row as well. A batch is computed while
        the one before it is measured, encoded and written.
        """
        with (
            closing(prefetched(self.batches)) as computed,
            closing(
                ordered_map(self._sample, chain.from_iterable(computed), **ahead(self.header.image_shape))
            ) as measured,
        ):
            for one in track(measured, self.header.images, what):
                self.summary.add(one.fields)
                yield one

    def _sample(self, change: Change) -> Sample:
        parent = change.parent
        measured = distances.between(parent.pixels, change.pixels)
        fields = {**parent.fields, **change.fields, **measured}
        return Sample(parent.label, f"{self.prefix}{parent.stem}{change.suffix}", change.pixels, parent.source, fields)


def write(output: Path, derived: Sequence[Derived]) -> dict[str, float]:
    """Write datasets into one tar.

    Returns:
        The summaries of distances, flat: of the first dataset `l_2_norm_mean` and so on, of each further one with its
        name before, `fgm_aware_of_jpeg_compression/l_2_norm_mean`.
    """
    several = len(derived) > 1
    what = [f"images of {one.header.name}" if several else "images" for one in derived]
    writer.write_all(output, ((one.header, one.samples(counted)) for one, counted in zip(derived, what, strict=True)))
    flat: dict[str, float] = {}
    for place, one in enumerate(derived):
        before = f"{one.header.name}/" if place else ""
        flat |= {f"{before}{name}": value for name, value in distances.flat(one.summary.describe()).items()}
    return flat
