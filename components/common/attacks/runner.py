"""Runs an attack on a packed dataset as a stream: everything that an attack's `task.py` does not do itself."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from evasion.components.common.data.pixels import Floats, Pixels, to_float, towards
from evasion.components.common.data.provenance import ATTACK, AWARE, OBLIVIOUS
from evasion.components.common.defenses.known import Defense, defenses_of
from evasion.components.common.models.artifact import Card

SMALL_BATCH_BYTES = 2**20  # up to which two batches are attacked at once, so that no core waits for the other's part


@dataclasses.dataclass(frozen=True)
class Generated:
    """The result of an attack on one batch.

    Attributes:
        outputs: The target's, before the attack, shape (images, classes).
        pixels: The attacked images as they are saved, uint8.
        without_gradient: For each image, whether the gradient of its loss is zero everywhere.
        columns: Further columns of `samples.csv`, a value for each image.
    """

    outputs: Floats
    pixels: Pixels
    without_gradient: npt.NDArray[np.bool_]
    columns: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on a target, batch by batch.

    Attributes:
        generate: Takes a batch as it is saved, uint8, and returns the result.
        thread_safe: Whether several threads may call it at once.
        images: How many images it takes at a time, a multiple of `batch_size`; 0 for `batch_size`. An attack that takes
            more passes them through the model in batches itself.
    """

    generate: Callable[[Pixels], Generated]
    thread_safe: bool = False
    images: int = 0


MakeAttack = Callable[[Any, int], Attack]
"""Takes the target, a `Classifier`, and the seed; returns the attack on it."""


def from_floats(
    target: Any,
    generate: Callable[[Floats, Floats], Floats],
    columns: Callable[[], Mapping[str, Sequence[Any]]] = dict,
) -> Attack:
    """Return an attack that is a function of float images, as those of ART over `target.art` are.

    The labels are the target's predictions, not the true ones, which would leak them into the image (Kurakin et al.
    2017, arXiv:1611.01236). ART does the same with `y=None`; here the outputs serve for the confidence as well.

    Args:
        target: What is attacked.
        generate: Takes images, float32 in [0, 1], and one-hot labels to move away from; returns the attacked images.
        columns: Called after `generate`; returns the further columns.
    """

    def attack(pixels: Pixels) -> Generated:
        x = to_float(pixels)
        outputs = target.attacked_outputs(x)
        y = np.eye(outputs.shape[1], dtype=np.float32)[outputs.argmax(axis=1)]
        gradient = target.loss_gradient(x, y)
        without_gradient = np.logical_not(np.nan_to_num(gradient).any(axis=(1, 2, 3)))
        attacked = towards(generate(x, y), pixels)
        return Generated(outputs, attacked, without_gradient, columns())

    return Attack(attack)


def run(
    *,
    stage: str,
    dataset: Path,
    model: Path,
    adversarial: Path,
    defenses: str,
    parameters: Mapping[str, Any],
    seed: int,
    make: MakeAttack,
    iterates: bool,
    effort: str = "",
    stronger: str = "",
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
        make: Returns the attack on a target.
        iterates: Whether the attack takes more than one step. What rests on single steps alone is called so.
        effort: In words, how much the attack does, where its name does not say it.
        stronger: The options of an evaluation that give the attack the budget of its paper; blank if it has it.

    Returns:
        Summaries of the distances between the saved images and their parents, named as by `derivation.write`.
    """
    used = {**parameters, "seed": seeding.resolve(seed)}
    known_defenses = defenses_of(defenses)
    with tracking.stage(stage, {**used, "defenses": defenses}) as stage_run, Dataset(dataset) as clean:
        card = Card.read_for(model, clean.header)  # refused before TensorFlow is loaded

        from evasion.components.common.models import classifier

        bare = classifier.load(model)

        entry = _entry(stage, parameters, used["seed"], clean, card, bare)
        entry |= {"iterates": iterates, "effort": effort, "stronger": stronger}

        def changes(defense: Defense | None) -> Iterator[list[DerivedImage]]:
            target = aimed(bare, defense, eot_samples=used["eot_samples"], seed=used["seed"])
            attack = make(target, used["seed"])
            yield from _changes(clean, bare, target, attack, used["batch_size"], card.class_names)

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
            "draws": entry["parameters"]["eot_samples"] if defense and defense.transformation.random else None,
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


def _changes(
    clean: Dataset, bare: Any, target: Any, attack: Attack, batch_size: int, class_names: tuple[str, ...]
) -> Iterator[list[DerivedImage]]:
    """Attack batch by batch. The prediction recorded for an image is that of the bare model before the attack."""
    from evasion.components.common.models.classifier import stack

    def predicted_before(pixels: Pixels) -> npt.NDArray[np.float64]:
        starts = range(0, len(pixels), batch_size)
        return np.concatenate([bare.probabilities(to_float(pixels[start : start + batch_size])) for start in starts])

    def changed(batch: list[Sample]) -> list[DerivedImage]:
        pixels = stack(batch)
        attacked = attack.generate(pixels)
        probabilities = bare.probabilities_of(attacked.outputs) if target is bare else predicted_before(pixels)
        predicted = probabilities.argmax(axis=1)
        return [
            DerivedImage(
                sample,
                attacked.pixels[index],
                fields={
                    "clean_prediction": class_names[predicted[index]],
                    "clean_confidence": f"{probabilities[index, predicted[index]]:.9g}",
                    "zero_gradient": int(attacked.without_gradient[index]),
                    **{name: values[index] for name, values in attacked.columns.items()},
                },
            )
            for index, sample in enumerate(batch)
        ]

    taken = attack.images or batch_size
    # The steps of large batches take memory.
    small = taken * math.prod(clean.header.image_shape) <= SMALL_BATCH_BYTES
    threads = 2 if attack.thread_safe and small else 1
    with closing(ordered_map(changed, clean.batches(taken), threads=threads, ahead=threads)) as changes:
        yield from changes
