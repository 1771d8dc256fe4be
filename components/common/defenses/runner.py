"""A preprocessing defense over packed datasets, streamed: all that a defense's `task.py` does not do itself."""

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
from evasion.components.common.data.derivation import Change, Derived, write
from evasion.components.common.data.header import Sample
from evasion.components.common.data.pixels import ahead
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
                    closing(ordered_map(change, samples, **ahead(header.image_shape))) as changed,
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


def _suffix(parent: Sample, number: int) -> str:
    """Return what stands behind the name of the further images made of one: `_1` alone may be another's name."""
    return f"_{number}_{hashlib.sha256(parent.source.encode()).hexdigest()[:8]}" if number else ""


def _with_copies(before: Dataset, copied: npt.NDArray[np.bool_]) -> list[int]:
    added = np.bincount(before.labels[copied], minlength=len(before.header.counts))
    return [int(count) for count in np.array(before.header.counts) + added]
