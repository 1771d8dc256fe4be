"""A dataset made of a dataset, image by image: what attacks and defenses share."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
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


def write(
    output: Path, header: Header, prefix: str, batches: Iterable[Sequence[Change]], what: str
) -> dict[str, float]:
    """Write the dataset and return the summary of its images' distances to their parents, flat.

    The distances are those of the 8-bit images that are saved; each stands in the image's row as well. A batch is
    computed while the one before it is measured, encoded and written.
    """
    summary = metrics.Summary()

    def sample(change: Change) -> Sample:
        parent = change.parent
        distances = metrics.distances(parent.pixels, change.pixels)
        fields = {**parent.fields, **change.fields, **distances}
        return Sample(parent.label, f"{prefix}{parent.stem}{change.suffix}", change.pixels, parent.source, fields)

    def samples() -> Iterator[Sample]:
        with (
            closing(prefetched(batches)) as computed,
            closing(
                ordered_map(sample, chain.from_iterable(computed), **dataset.ahead(header.image_shape))
            ) as measured,
        ):
            for one in track(measured, header.images, what):
                summary.add(one.fields)
                yield one

    dataset.write(output, header, samples())
    return metrics.flat(summary.describe())


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
    output: Path,
    parameters: Mapping[str, Any],
    transformation: Transformation,
    copied: npt.NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Run a preprocessing defense over a packed dataset: all that a defense's `task.py` does not do itself.

    A dataset is training or testing data (`Header.split`, said when it was loaded). `apply_fit` speaks of the
    first, `apply_predict` of the second: where the one that counts is false the images pass unchanged, and the
    dataset's provenance says `applied: false`.

    Args:
        stage: The defense's name; the dataset's folder and MLflow's artifact `<stage>.tar` are named after it.
        source: The dataset to defend.
        output: Where the defended one goes.
        parameters: The defense's own parameters with `apply_fit`, `apply_predict` and `seed`.
        transformation: What becomes of one image. Called on threads.
        copied: For data augmentation, shape (images,): every image stays as it is, and of these a changed copy
            is added.

    Returns:
        Summaries of the distances between the defended images and their parents.
    """
    used = {**parameters, "seed": seeding.resolve(parameters["seed"])}
    with tracking.stage_meanwhile(stage, used) as opening, Dataset(source) as before:
        applied = bool(used["apply_fit"] if before.header.split == "training" else used["apply_predict"])
        header = before.header.derive(
            name=stage,
            prefix="def_",
            entry={
                "stage": stage,
                "kind": "defense",
                "parameters": {name: value for name, value in parameters.items() if name != "seed"},
                "seed": used["seed"],
                "applied": applied,
                "versions": versions.recorded(),
                "parent_sha256": before.sha256,
            },
            counts=_with_copies(before, copied) if copied is not None and applied else None,
        )

        def change(sample: Sample) -> list[Change]:
            results = [] if applied and copied is None else [sample.pixels]
            if applied and (copied is None or copied[sample.index]):
                original = before.header.original(sample.source)
                results.append(transformation.of(sample.pixels, used["seed"], original))
            return [Change(sample, pixels, _suffix(sample, number)) for number, pixels in enumerate(results)]

        with (
            closing(before.samples()) as samples,
            closing(ordered_map(change, samples, **dataset.ahead(header.image_shape))) as changes,
        ):
            described = write(output, header, "def_", opening.watched(changes), "images")
        run = opening.stage()
        run.tag({"dataset_sha256": before.sha256}, name=f"{stage} {before.header.title}")
        run.log_metrics(described)
        run.log_file(output, f"{stage}.tar")
    return described
