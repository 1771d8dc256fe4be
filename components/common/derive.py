"""Datasets made of datasets, image by image: what attacks and defenses share."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evasion.components.common import dataset, metrics, seeding, tracking, versions
from evasion.components.common.concurrency import ordered_map, prefetched
from evasion.components.common.dataset import Dataset, Header, Pixels, Sample
from evasion.components.common.progress import track
from evasion.components.common.transformations import Transformation


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
    summary: metrics.Summary = dataclasses.field(default_factory=metrics.Summary)

    def samples(self, what: str) -> Iterator[Sample]:
        """Yield the images as they are saved.

        The distances are those of the 8-bit images; each stands in the image's row as well. A batch is computed while
        the one before it is measured, encoded and written.
        """
        with (
            closing(prefetched(self.batches)) as computed,
            closing(
                ordered_map(self._sample, chain.from_iterable(computed), **dataset.ahead(self.header.image_shape))
            ) as measured,
        ):
            for one in track(measured, self.header.images, what):
                self.summary.add(one.fields)
                yield one

    def _sample(self, change: Change) -> Sample:
        parent = change.parent
        distances = metrics.distances(parent.pixels, change.pixels)
        fields = {**parent.fields, **change.fields, **distances}
        return Sample(parent.label, f"{self.prefix}{parent.stem}{change.suffix}", change.pixels, parent.source, fields)


def write(output: Path, derived: Sequence[Derived]) -> dict[str, float]:
    """Write datasets into one tar.

    Returns:
        The summaries of distances, flat: of the first dataset `l_2_norm_mean` and so on, of each further one with its
        name before, `fgm_aware_of_jpeg_compression/l_2_norm_mean`.
    """
    several = len(derived) > 1
    what = [f"images of {one.header.name}" if several else "images" for one in derived]
    dataset.write_all(output, ((one.header, one.samples(counted)) for one, counted in zip(derived, what, strict=True)))
    flat: dict[str, float] = {}
    for place, one in enumerate(derived):
        before = f"{one.header.name}/" if place else ""
        flat |= {f"{before}{name}": value for name, value in metrics.flat(one.summary.describe()).items()}
    return flat


def _suffix(parent: Sample, number: int) -> str:
    """Return what stands behind the name of the further images made of one: `_1` alone may be another's name."""
    return f"_{number}_{hashlib.sha256(parent.source.encode()).hexdigest()[:8]}" if number else ""


def _with_copies(before: Dataset, copied: npt.NDArray[np.bool_]) -> list[int]:
    added = np.bincount(before.labels[copied], minlength=len(before.header.counts))
    return [int(count) for count in np.array(before.header.counts) + added]


def defend(
    *,
    stage: str,
    source: Path,
    others: Sequence[Path],
    output: Path,
    parameters: Mapping[str, Any],
    transformation: Transformation,
    copied: Callable[[int], npt.NDArray[np.bool_]] | None = None,
) -> dict[str, float]:
    """Run a preprocessing defense over packed datasets: all that a defense's `task.py` does not do itself.

    A dataset is training or testing data (`Header.split`, said when it was loaded). `apply_fit` speaks of the
    first, `apply_predict` of the second: where the one that counts is false the images pass unchanged, and the
    dataset's provenance says `applied: false`.

    Args:
        stage: The defense's name. The first dataset's folder and MLflow's artifact `<stage>.tar` are named after it;
            that of a further dataset is `<stage>_of_<its name>`.
        source: The tar with the datasets to defend. Of several in a tar those are left alone that an attack aimed at
            another defense.
        others: Further such tars.
        output: Where the defended ones go.
        parameters: The defense's own parameters with `apply_fit`, `apply_predict` and `seed`.
        transformation: What becomes of one image. Called on threads.
        copied: For data augmentation, given the number of images, a mask of them: every image stays as it is, and of
            these a changed copy is added.

    Returns:
        Summaries of the distances between the defended images and their parents, as `write` names them.
    """
    used = {**parameters, "seed": seeding.resolve(parameters["seed"])}
    with tracking.stage_meanwhile(stage, used) as opening, ExitStack() as stack:
        before = [stack.enter_context(one) for one in Dataset.to_work_on([source, *others], stage)]

        def derived(one: Dataset, name: str) -> Derived:
            applied = bool(used["apply_fit"] if one.header.split == "training" else used["apply_predict"])
            mask = copied(len(one)) if copied and applied else None
            header = one.header.derive(
                name=name,
                prefix="def_",
                entry={
                    "stage": stage,
                    "kind": "defense",
                    "parameters": {name: value for name, value in parameters.items() if name != "seed"},
                    "seed": used["seed"],
                    "applied": applied,
                    "versions": versions.recorded(),
                    "parent_sha256": one.sha256,
                },
                counts=_with_copies(one, mask) if mask is not None else None,
            )

            def change(sample: Sample) -> list[Change]:
                results = [] if applied and mask is None else [sample.pixels]
                if applied and (mask is None or mask[sample.index]):
                    original = one.header.original(sample.source)
                    results.append(transformation.of(sample.pixels, used["seed"], original))
                return [Change(sample, pixels, _suffix(sample, number)) for number, pixels in enumerate(results)]

            def changes() -> Iterator[list[Change]]:
                with (
                    closing(one.samples()) as samples,
                    closing(ordered_map(change, samples, **dataset.ahead(header.image_shape))) as changed,
                ):
                    yield from opening.watched(changed)

            return Derived(header, "def_", changes())

        names = [f"{stage}_of_{one.header.name}" if place else stage for place, one in enumerate(before)]
        described = write(output, [derived(one, name) for one, name in zip(before, names, strict=True)])
        run = opening.stage()
        title = before[0].header.title if len(before) == 1 else ""
        run.tag({"dataset_sha256": before[0].sha256}, name=f"{stage} {title}".strip())
        run.log_metrics(described)
        run.log_file(output, f"{stage}.tar")
    return described
