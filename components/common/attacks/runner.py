"""An attack on a packed dataset, streamed: all that an attack's `task.py` does not do itself."""

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
from evasion.components.common.data.derivation import Change, Derived, write
from evasion.components.common.data.header import Sample
from evasion.components.common.data.pixels import Floats, Pixels, to_float, to_pixels
from evasion.components.common.defenses.known import Defense, defenses_of
from evasion.components.common.models.artifact import Card

AWARE, OBLIVIOUS = "defense-aware", "oblivious"
SMALL_BATCH_BYTES = 2**20  # up to which two batches are attacked at once, so that no core waits for the other's part


@dataclasses.dataclass(frozen=True)
class Attack:
    """What an attack does to one batch, said by `generate` or by `compiled`.

    Attributes:
        generate: Given images, float32 in [0, 1], and one-hot labels to move away from, returns attacked images.
        stays_without_gradient: Whether an image whose gradient is zero everywhere stays as it is.
        columns: Called after `generate`: further columns of `samples.csv` with a value for each image of the batch.
        compiled: The same in one pass, for an attack on the bare model: given a batch as it is saved, uint8, returns
            the model's outputs, the attacked images, uint8, and for each whether its gradient is zero everywhere.
            Called on threads.
    """

    generate: Callable[[Floats, Floats], Floats] | None = None
    stays_without_gradient: bool = True
    columns: Callable[[], Mapping[str, list[Any]]] = dict
    compiled: Callable[[Pixels], tuple[Floats, Pixels, npt.NDArray[np.bool_]]] | None = None


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
) -> dict[str, float]:
    """Attack a dataset by several attackers and save the results in one tar.

    Args:
        stage: The attack's name; MLflow's artifact `<stage>.tar` is named after it, and in it the dataset that an
            oblivious attacker makes. That of an attacker who knows a defense is `<stage>_aware_of_<defense>`.
        dataset: The images to attack.
        model: The model artifact.
        adversarial: Where the attacked datasets go.
        defenses: The defenses that further attackers know, one each, as `known.defenses_of` reads them.
        parameters: The attack's own parameters, `batch_size` and `eot_samples` among them.
        seed: The seed asked for.
        make: Given what is attacked, a `Classifier` whose `art` is ART's, and the seed used, returns the attack.

    Returns:
        Summaries of the distances between the saved images and their parents, as `derive.write` names them.
    """
    used = {**parameters, "seed": seeding.resolve(seed)}
    known = defenses_of(defenses)
    with tracking.stage(stage, {**used, "defenses": defenses}) as run, Dataset(dataset) as clean:
        card = Card.read(model)
        card.indices_of(clean.header.class_names, clean.header.image_shape)  # refused before TensorFlow is loaded

        from evasion.components.common.models import classifier

        bare = classifier.load(model)

        def derived(defense: Defense | None) -> Derived:
            header = clean.header.derive(
                name=f"{stage}_aware_of_{defense.stage}" if defense else stage,
                prefix="adv_",
                entry={
                    "stage": stage,
                    "kind": "attack",
                    "parameters": dict(parameters),
                    "seed": used["seed"],
                    "versions": versions.recorded(model=True),
                    "parent_sha256": clean.sha256,
                    "model_sha256": card.sha256,
                    "gradient_from_logits": bare.from_logits,
                    "knowledge": AWARE if defense else OBLIVIOUS,
                    "defense": defense.describe() if defense else None,
                },
            )

            def changes() -> Iterator[list[Change]]:
                target = aimed(bare, defense, eot_samples=used["eot_samples"], seed=used["seed"])
                attack = make(target, used["seed"])
                yield from _changes(clean, bare, target, attack, used["batch_size"], card.class_names)

            return Derived(header, "adv_", changes())

        run.tag({"dataset_sha256": clean.sha256})
        described = write(adversarial, [derived(defense) for defense in (None, *known)])
        run.log_metrics(described)
        run.log_file(adversarial, f"{stage}.tar")
    return described


def aimed(bare: Any, defense: Defense | None, *, eot_samples: int, seed: int) -> Any:
    """Return what an attacker aims at: the model, or the model behind the defense that the attacker knows."""
    if defense is None:
        return bare
    from evasion.components.common.attacks.defense_aware import Defended

    return Defended(bare.model, defense.transformation, eot_samples=eot_samples, seed=seed)


def _changes(
    clean: Dataset, bare: Any, target: Any, attack: Attack, batch_size: int, class_names: tuple[str, ...]
) -> Iterator[list[Change]]:
    """Attack batch by batch.

    The labels are the predictions of what is attacked, not the true ones, which would leak them into the image
    (Kurakin et al. 2017, arXiv:1611.01236): what ART does with `y=None`, in one prediction of which the confidence
    is kept. What the row of an image says of the time before the attack is the bare model's.
    """
    from evasion.components.common.models.classifier import stack

    def changed(batch: list[Sample]) -> list[Change]:
        pixels = stack(batch)
        if attack.compiled:
            outputs, attacked, unmoved = attack.compiled(pixels)
            before = bare.probabilities_of(outputs)
            columns: Mapping[str, list[Any]] = {}
        else:
            before, attacked, unmoved = _generated(to_float(pixels), bare, target, attack)
            columns = attack.columns()
        predicted = before.argmax(axis=1)
        return [
            Change(
                sample,
                attacked[place],
                fields={
                    "clean_prediction": class_names[predicted[place]],
                    "clean_confidence": f"{before[place, predicted[place]]:.9g}",
                    "zero_gradient": int(unmoved[place]),
                    **{name: values[place] for name, values in columns.items()},
                },
            )
            for place, sample in enumerate(batch)
        ]

    # ART's attacks keep what they found; and the steps of large batches take memory.
    small = batch_size * math.prod(clean.header.image_shape) <= SMALL_BATCH_BYTES
    threads = 2 if attack.compiled and small else 1
    with closing(ordered_map(changed, clean.batches(batch_size), threads=threads, ahead=threads)) as changes:
        yield from changes


def _generated(
    x: Floats, bare: Any, target: Any, attack: Attack
) -> tuple[npt.NDArray[np.float64], Pixels, npt.NDArray[np.bool_]]:
    """Return the bare model's probabilities for a batch, the attacked images, and which of them had no gradient."""
    outputs = target.attacked_outputs(x)
    before = bare.probabilities_of(outputs) if target is bare else bare.probabilities(x)
    y = np.eye(before.shape[1], dtype=np.float32)[outputs.argmax(axis=1)]
    assert attack.generate is not None  # noqa: S101  (or it would be compiled)
    x_adv = attack.generate(x, y)
    gradient: Floats = x_adv - x if attack.stays_without_gradient else target.loss_gradient(x, y)
    return before, to_pixels(x_adv), np.logical_not(gradient.any(axis=(1, 2, 3)))
