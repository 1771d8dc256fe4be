"""Applies a defense to packed datasets as a stream: everything that a defense's `task.py` does not do itself."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evasion.components.common import seeding, tracking, versions
from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.derivation import Derived, DerivedImage, write
from evasion.components.common.data.distances import DISTANCES, OF_ATTACK
from evasion.components.common.data.header import TRAINING, Sample
from evasion.components.common.data.pixels import ahead
from evasion.components.common.data.provenance import ATTACK, DEFENSE
from evasion.components.common.defenses.transformations import Transformation


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
    """Apply a preprocessing defense to packed datasets.

    A dataset is training or testing data (`Header.split`). `apply_fit` decides whether the defense is applied to
    training data, `apply_predict` whether it is applied to testing data. If it is not applied, the images pass
    unchanged, and the dataset's provenance says `applied: false`.

    Args:
        stage: The defense's name. The first dataset has this name, each further dataset is named
            `<stage>_of_<its name>`, and MLflow's artifact is named `<stage>.tar`.
        source: The tar with the datasets to defend. If it has several, those of attacks that know another defense are
            left out.
        others: Further such tars.
        output: The tar to write.
        parameters: The defense's own parameters with `apply_fit`, `apply_predict` and `seed`.
        transformation: The function to apply to one image. Several threads call it.
        copied: For data augmentation: takes the number of images, returns a mask of them. Every image stays as it is,
            and a transformed copy of each masked image is added.

    Returns:
        Summaries of the distances between the defended images and their parents, named as by `write`.
    """
    used = {**parameters, "seed": seeding.resolve(parameters["seed"])}
    with tracking.stage_meanwhile(stage, used) as opening, ExitStack() as stack:
        sources = [stack.enter_context(dataset) for dataset in Dataset.to_work_on([source, *others], stage)]
        names = [f"{stage}_of_{data.header.name}" if index else stage for index, data in enumerate(sources)]
        defended = [
            _defended(data, stage, name, used, transformation, copied, opening)
            for data, name in zip(sources, names, strict=True)
        ]
        distances = write(output, defended)
        stage_run = opening.stage()
        title = sources[0].header.title if len(sources) == 1 else ""
        stage_run.tag({"dataset_sha256": sources[0].sha256}, name=f"{stage} {title}".strip())
        stage_run.log_metrics(distances)
        stage_run.log_file(output, f"{stage}.tar")
    return distances


def _defended(
    dataset: Dataset,
    stage: str,
    name: str,
    used: Mapping[str, Any],
    transformation: Transformation,
    copied: Callable[[int], npt.NDArray[np.bool_]] | None,
    opening: tracking.Opening,
) -> Derived:
    """Return a dataset after the defense. Its images are computed when they are requested."""
    applied = bool(used["apply_fit"] if dataset.header.split == TRAINING else used["apply_predict"])
    mask = copied(len(dataset)) if copied and applied else None
    header = dataset.header.derive(
        name=name,
        prefix="def_",
        entry={
            "stage": stage,
            "kind": DEFENSE,
            "parameters": {key: value for key, value in used.items() if key != "seed"},
            "seed": used["seed"],
            "applied": applied,
            "versions": versions.recorded(),
            "parent_sha256": dataset.sha256,
        },
        counts=_with_copies(dataset, mask) if mask is not None else None,
    )

    # What the attack saved must not exceed its eps; the distances measured here are those of the defense.
    attacked = [entry["kind"] for entry in dataset.header.provenance[-1:]] == [ATTACK]

    def change(sample: Sample) -> list[DerivedImage]:
        kept = {OF_ATTACK + name: sample.fields[name] for name in DISTANCES if attacked and name in sample.fields}
        results = [] if applied and mask is None else [sample.pixels]
        if applied and (mask is None or mask[sample.index]):
            original = dataset.header.original(sample.source)
            results.append(transformation.of(sample.pixels, used["seed"], original))
        return [DerivedImage(sample, pixels, _suffix(sample, number), kept) for number, pixels in enumerate(results)]

    def changes() -> Iterator[list[DerivedImage]]:
        with (
            closing(dataset.samples()) as samples,
            closing(ordered_map(change, samples, **ahead(header.image_shape))) as changed,
        ):
            yield from opening.watched(changed)

    return Derived(header, "def_", changes())


def _suffix(parent: Sample, number: int) -> str:
    """Return the suffix of further images derived from one: `_1` alone could give the name of another image."""
    return f"_{number}_{hashlib.sha256(parent.source.encode()).hexdigest()[:8]}" if number else ""


def _with_copies(dataset: Dataset, copied: npt.NDArray[np.bool_]) -> list[int]:
    """Return the number of images of each class, including the copies."""
    added = np.bincount(dataset.labels[copied], minlength=len(dataset.header.counts))
    return [int(count) for count in np.array(dataset.header.counts) + added]
