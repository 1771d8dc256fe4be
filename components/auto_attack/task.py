"""Attack a packed dataset with APGD-CE, APGD-T and Square in turn (Croce and Hein 2020, arXiv:2003.01690)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evasion.components.auto_attack import budgets
from evasion.components.auto_attack.budgets import Budget
from evasion.components.common import validate
from evasion.components.common.validate import ParameterError

if TYPE_CHECKING:
    from evasion.components.common.attacks import runner

NORMS = ("inf", "2")


def check(
    *,
    batch_size: int,
    eps: float,
    norm: str,
    budget: str,
    max_iter: int,
    num_random_init: int,
    n_target_classes: int,
    n_queries: int,
    members: str,
    eot_samples: int,
    seed: int,
    **_: object,
) -> None:
    """Validate the parameters."""
    validate.positive_integer("batch_size", batch_size)
    validate.one_of("norm", norm, validate.NORMS)
    if norm not in NORMS:
        raise ParameterError(
            f"norm must be inf or 2 for auto_attack; fgm and pgd attack in norm 1: use --attacks fgm,pgd. "
            f"Received: norm={norm!r}",
            "norm",
        )
    validate.attack_size(norm, eps, eps)
    budgets.check(
        budget,
        max_iter=max_iter,
        num_random_init=num_random_init,
        n_target_classes=n_target_classes,
        n_queries=n_queries,
    )
    budgets.chosen_members(members)
    validate.positive_integer("eot_samples", eot_samples)
    validate.seed(seed)


def auto_attack(
    *,
    dataset: Path,
    model: Path,
    adversarial: Path,
    defenses: str,
    batch_size: int,
    eps: float,
    norm: str,
    budget: str,
    max_iter: int,
    num_random_init: int,
    n_target_classes: int,
    n_queries: int,
    members: str,
    eot_samples: int,
    seed: int,
) -> dict[str, float]:
    """Attack a dataset. The parameters are those of the step.

    Returns:
        Summaries of the distances between the saved images and their parents.
    """
    shared = {"batch_size": batch_size, "eps": eps, "norm": norm, "eot_samples": eot_samples}
    given = {
        "max_iter": max_iter,
        "num_random_init": num_random_init,
        "n_target_classes": n_target_classes,
        "n_queries": n_queries,
    }
    check(**shared, **given, budget=budget, members=members, seed=seed)  # type: ignore[arg-type]

    from evasion.components.common.attacks import runner
    from evasion.components.common.models.artifact import Card

    chosen = budgets.chosen_members(members)
    classes = len(Card.read(model).class_names)
    work = budgets.resolved(budget, classes=classes, **given)
    return runner.run(
        stage="auto_attack",
        dataset=dataset,
        model=model,
        adversarial=adversarial,
        defenses=defenses,
        parameters={**shared, **budgets.recorded(chosen, work)},
        seed=seed,
        make=make(members=chosen, budget=work, norm=norm, eps=eps, batch_size=batch_size),
        iterates=True,
        effort=budgets.described(chosen, work),
        stronger=budgets.stronger(chosen, budget, classes=classes, **given),
    )


def make(*, members: tuple[str, ...], budget: Budget, norm: str, eps: float, batch_size: int) -> "runner.MakeAttack":
    """Return what makes the attack on a target.

    Args:
        members: Some of `budgets.MEMBERS`, in their order.
        budget: How much each of them does.
        norm: inf or 2.
        eps: Size of the attack in its norm, for pixels in [0, 1].
        batch_size: Images in a pass through the model.
    """
    from evasion.components.common.attacks import runner

    def attack_on(target: Any, seed: int) -> runner.Attack:
        from evasion.components.auto_attack.ensemble import Ensemble

        ensemble = Ensemble(
            target, members=members, budget=budget, norm=norm, eps=eps, batch_size=batch_size, seed=seed
        )
        return runner.Attack(ensemble.generate, images=ensemble.capacity)

    return attack_on
