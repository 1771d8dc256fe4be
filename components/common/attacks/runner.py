"""Runs an attack on a packed dataset as a stream: everything that an attack's `task.py` does not do itself."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evasion.components.common import seeding, tracking, versions
from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.derivation import Derived, DerivedImage, write
from evasion.components.common.data.header import Sample
from evasion.components.common.data.pixels import Floats, Pixels, to_float, to_pixels
from evasion.components.common.data.provenance import ATTACK, AWARE, OBLIVIOUS
from evasion.components.common.defenses.known import Defense, defenses_of
from evasion.components.common.models.artifact import Card

SMALL_BATCH_BYTES = 2**20  # up to which two batches are attacked at once, so that no core waits for the other's part


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on one batch, over predictions and gradients of the target. It can attack any target.

    Attributes:
        generate: Takes images, float32 in [0, 1], and one-hot labels to move away from; returns the attacked images.
        stays_without_gradient: Whether an image whose gradient is zero everywhere stays as it is.
        columns: Called after `generate`; returns further columns of `samples.csv`, a value for each image of the batch.
    """

    generate: Callable[[Floats, Floats], Floats]
    stays_without_gradient: bool = True
    columns: Callable[[], Mapping[str, list[Any]]] = dict


CompiledAttack = Callable[[Pixels], tuple[Floats, Pixels, npt.NDArray[np.bool_]]]
"""The same attack in one pass, on the bare model alone.

It takes a batch as it is saved, uint8, and returns the model's outputs, the attacked images, uint8, and for each image
whether its gradient is zero everywhere. Several threads call it.
"""


@dataclasses.dataclass(frozen=True)
class AttackedBatch:
    """The result for one batch.

    Attributes:
        probabilities: The bare model's, before the attack, shape (images, classes).
        pixels: The attacked images, uint8.
        without_gradient: For each image, whether its gradient is zero everywhere.
        columns: Further columns of `samples.csv`.
    """

    probabilities: npt.NDArray[np.float64]
    pixels: Pixels
    without_gradient: npt.NDArray[np.bool_]
    columns: Mapping[str, list[Any]]


@dataclasses.dataclass(frozen=True)
class BatchAttack:
    """An attack on batches of 8-bit images.

    Attributes:
        attack: Attacks one batch.
        thread_safe: Whether several threads may call it at once.
    """

    attack: Callable[[Pixels], AttackedBatch]
    thread_safe: bool


def run(
    *,
    stage: str,
    dataset: Path,
    model: Path,
    adversarial: Path,
    defenses: str,
    parameters: Mapping[str, Any],
    seed: int,
    make: Callable[[Any, int], Attack],
    make_compiled: Callable[[Any, int], CompiledAttack] | None = None,
) -> dict[str, float]:
    """Attack a dataset by several attackers and save the results in one tar.

    Args:
        stage: The attack's name. The dataset of the oblivious attacker has this name, that of an attacker who knows a
            defense is named `<stage>_aware_of_<defense>`, and MLflow's artifact is named `<stage>.tar`.
        dataset: The images to attack.
        model: The model artifact.
        adversarial: The tar to write.
        defenses: The defenses that further attackers know, one attacker for each defense; `known.defenses_of` reads it.
        parameters: The attack's own parameters, with `batch_size` and `eot_samples`.
        seed: The stage's seed; -1 draws one.
        make: Takes the target, a `Classifier` whose `art` is ART's, and the seed; returns the attack.
        make_compiled: Takes the same and returns the same attack, compiled; None if the attack has no compiled form.

    Returns:
        Summaries of the distances between the saved images and their parents, named as by `derivation.write`.
    """
    used = {**parameters, "seed": seeding.resolve(seed)}
    known_defenses = defenses_of(defenses)
    with tracking.stage(stage, {**used, "defenses": defenses}) as stage_run, Dataset(dataset) as clean:
        card = Card.read(model)
        card.indices_of(clean.header.class_names, clean.header.image_shape)  # refused before TensorFlow is loaded

        from evasion.components.common.models import classifier

        bare = classifier.load(model)

        entry = _entry(stage, parameters, used["seed"], clean, card, bare)

        def changes(defense: Defense | None) -> Iterator[list[DerivedImage]]:
            target = aimed(bare, defense, eot_samples=used["eot_samples"], seed=used["seed"])
            attack = batch_attack(bare, target, used["seed"], make, make_compiled)
            yield from _changes(clean, attack, used["batch_size"], card.class_names)

        stage_run.tag({"dataset_sha256": clean.sha256})
        distances = write(
            adversarial, [_derived(clean, entry, defense, changes(defense)) for defense in (None, *known_defenses)]
        )
        stage_run.log_metrics(distances)
        stage_run.log_file(adversarial, f"{stage}.tar")
    return distances


def _derived(
    clean: Dataset, entry: Mapping[str, Any], defense: Defense | None, changes: Iterator[list[DerivedImage]]
) -> Derived:
    """Return the dataset of one attacker."""
    stage = entry["stage"]
    header = clean.header.derive(
        name=f"{stage}_aware_of_{defense.stage}" if defense else stage,
        prefix="adv_",
        entry={
            **entry,
            "knowledge": AWARE if defense else OBLIVIOUS,
            "defense": defense.describe() if defense else None,
        },
    )
    return Derived(header, "adv_", changes)


def _entry(
    stage: str, parameters: Mapping[str, Any], seed: int, clean: Dataset, card: Card, bare: Any
) -> dict[str, Any]:
    """Return the part of the provenance's entry that is the same for all attackers."""
    return {
        "stage": stage,
        "kind": ATTACK,
        "parameters": dict(parameters),
        "seed": seed,
        "versions": versions.recorded(model=True),
        "parent_sha256": clean.sha256,
        "model_sha256": card.sha256,
        "gradient_from_logits": bare.from_logits,
    }


def aimed(bare: Any, defense: Defense | None, *, eot_samples: int, seed: int) -> Any:
    """Return the attacker's target: the model, or the model behind the defense that the attacker knows."""
    if defense is None:
        return bare
    from evasion.components.common.attacks.defense_aware import Defended

    return Defended(bare.model, defense.transformation, eot_samples=eot_samples, seed=seed)


def batch_attack(
    bare: Any,
    target: Any,
    seed: int,
    make: Callable[[Any, int], Attack],
    make_compiled: Callable[[Any, int], CompiledAttack] | None,
) -> BatchAttack:
    """Return the compiled attack if there is one and the target is the bare model; otherwise the one over the target.

    A compiled attack computes the model's own gradients, so it cannot attack a model behind a defense.
    """
    if make_compiled is not None and target is bare:
        compiled = make_compiled(target, seed)

        def attack_compiled(pixels: Pixels) -> AttackedBatch:
            outputs, attacked, without_gradient = compiled(pixels)
            return AttackedBatch(bare.probabilities_of(outputs), attacked, without_gradient, {})

        return BatchAttack(attack_compiled, thread_safe=True)
    attack = make(target, seed)
    # ART's attacks keep state between calls.
    return BatchAttack(lambda pixels: _generate(to_float(pixels), bare, target, attack), thread_safe=False)


def _generate(x: Floats, bare: Any, target: Any, attack: Attack) -> AttackedBatch:
    """Attack a batch.

    The labels are the target's predictions, not the true ones, which would leak them into the image (Kurakin et al.
    2017, arXiv:1611.01236). ART does the same with `y=None`; here the outputs serve for the confidence as well.
    """
    outputs = target.attacked_outputs(x)
    before = bare.probabilities_of(outputs) if target is bare else bare.probabilities(x)
    y = np.eye(before.shape[1], dtype=np.float32)[outputs.argmax(axis=1)]
    x_adv = attack.generate(x, y)
    gradient: Floats = x_adv - x if attack.stays_without_gradient else target.loss_gradient(x, y)
    without_gradient = np.logical_not(gradient.any(axis=(1, 2, 3)))
    return AttackedBatch(before, to_pixels(x_adv), without_gradient, attack.columns())


def _changes(
    clean: Dataset, attack: BatchAttack, batch_size: int, class_names: tuple[str, ...]
) -> Iterator[list[DerivedImage]]:
    """Attack batch by batch. The prediction recorded for an image is that of the bare model before the attack."""
    from evasion.components.common.models.classifier import stack

    def changed(batch: list[Sample]) -> list[DerivedImage]:
        attacked = attack.attack(stack(batch))
        predicted = attacked.probabilities.argmax(axis=1)
        return [
            DerivedImage(
                sample,
                attacked.pixels[index],
                fields={
                    "clean_prediction": class_names[predicted[index]],
                    "clean_confidence": f"{attacked.probabilities[index, predicted[index]]:.9g}",
                    "zero_gradient": int(attacked.without_gradient[index]),
                    **{name: values[index] for name, values in attacked.columns.items()},
                },
            )
            for index, sample in enumerate(batch)
        ]

    # The steps of large batches take memory.
    small = batch_size * math.prod(clean.header.image_shape) <= SMALL_BATCH_BYTES
    threads = 2 if attack.thread_safe and small else 1
    with closing(ordered_map(changed, clean.batches(batch_size), threads=threads, ahead=threads)) as changes:
        yield from changes
