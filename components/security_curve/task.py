"""Robust accuracy over the size of the attack: FGM, PGD and their worst case, with and without defenses."""

import math
from pathlib import Path

from evasion.components.common import validate
from evasion.components.common.validate import ParameterError

MOST_SIZES = 1_000


def check(
    *,
    batch_size: int,
    eps: float,
    norm: str,
    eps_values: str,
    pgd_max_iter: int,
    eot_samples: int,
    seed: int,
    **_: object,
) -> None:
    """Validate the parameters."""
    validate.positive_integer("batch_size", batch_size)
    validate.attack_size(norm, eps, eps)
    sizes_of(eps_values, norm)
    validate.at_least("pgd_max_iter", pgd_max_iter, 0)
    validate.positive_integer("eot_samples", eot_samples)
    validate.seed(seed)


def sizes_of(eps_values: str, norm: str) -> list[float]:
    """Return the sizes of the attack that a text names, separated by commas; none if it is blank."""
    largest = validate.LARGEST_EPS[norm]
    rule = (
        f"eps_values must be at most {MOST_SIZES:,} positive numbers separated by commas, at most {largest:,.0f} each"
    )
    try:
        sizes = [float(word) for word in eps_values.split(",")] if eps_values.strip() else []
    except ValueError:
        sizes = [math.nan]
    if len(sizes) > MOST_SIZES or not all(0 < size <= largest for size in sizes):
        raise ParameterError(f"{rule}. Received: eps_values={validate.shown(eps_values)}", "eps_values")
    return sizes


def security_curve(
    *,
    dataset: Path,
    model: Path,
    defenses: str,
    curve: Path,
    batch_size: int,
    eps: float,
    norm: str,
    eps_values: str,
    pgd_max_iter: int,
    eot_samples: int,
    seed: int,
) -> dict[str, float]:
    """Measure the curve; the parameters are those of the step of this name.

    Returns:
        Of each control at `eps` the robust accuracy, as the curve counts it; of clean images the accuracy.
    """
    parameters = {
        "batch_size": batch_size,
        "eps": eps,
        "norm": norm,
        "eps_values": eps_values,
        "pgd_max_iter": pgd_max_iter,
        "eot_samples": eot_samples,
    }
    check(**parameters, seed=seed)  # type: ignore[arg-type]

    from evasion.components.common import seeding, tracking
    from evasion.components.common.data.dataset import Dataset
    from evasion.components.common.defenses.known import defenses_of
    from evasion.components.common.files import replacing
    from evasion.components.common.models.artifact import Card
    from evasion.components.common.results import json_file
    from evasion.components.common.results.curve import CLEAN, CURVE
    from evasion.components.common.results.evaluation import PREDICTIONS

    used = {**parameters, "seed": seeding.resolve(seed)}
    known_defenses = defenses_of(defenses)
    logged = {**used, "defenses": defenses}
    with tracking.stage("security_curve", logged) as run, Dataset(dataset) as data, replacing(curve) as folder:
        card = Card.read_for(model, data.header)  # refused before TensorFlow is loaded
        folder.mkdir(parents=True)

        from evasion.components.security_curve.measure import measure

        sizes = sizes_of(eps_values, norm)
        content = measure(data, model, card, known_defenses, folder / PREDICTIONS, sizes, used)
        (folder / CURVE).write_text(json_file.to_text(content), encoding="utf-8")
        metrics = {
            f"{'' if name.startswith(CLEAN) else 'robust_'}accuracy_{name}": control.robust / len(data)
            for name, control in content.controls.items()
            if len(data)
        }
        run.tag({"dataset_sha256": data.sha256})
        run.log_metrics(metrics)
        run.log_file(folder / CURVE, CURVE)
    return metrics
