"""Robust accuracy behind a defense, for which two evaluations are compared image by image."""

from collections.abc import Sequence

from evasion.components.common.results.evaluation import Evaluation
from evasion.components.common.results.shares import share
from evasion.components.common.results.treatments import NONE


def behind_defenses(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    """Return robust accuracy with its interval, by the name of each dataset that was attacked and defended.

    An image is robust if it is right under the attack and without it, with the same defense. Datasets are left out
    whose images were not evaluated without the attack and with the same defense.
    """
    by_name = {}
    for evaluation in evaluations:
        if NONE in (evaluation.attack, evaluation.defense):
            continue
        wanted = (NONE, evaluation.defense, evaluation.root_sha256)
        clean = next((each for each in evaluations if (each.attack, each.defense, each.root_sha256) == wanted), None)
        if clean and (robust := _robust(clean, evaluation)) is not None:
            by_name[evaluation.dataset.name] = share("robust_accuracy", robust, int(evaluation.metrics["images"]))
    return by_name


def _robust(clean: Evaluation, attacked: Evaluation) -> int | None:
    """Return how many images are right in both; None if they are not of the same images.

    Both are read as streams: datasets that come from the same images have them in the same order.
    """
    if clean.metrics["images"] != attacked.metrics["images"]:
        return None
    robust = 0
    for one, other in zip(clean.predictions(), attacked.predictions(), strict=True):
        if clean.original(one["path"]) != attacked.original(other["path"]):
            return None
        robust += one["correct"] == other["correct"] == "1"
    return robust
