"""Attack a packed dataset with Projected Gradient Descent (Madry et al. 2018, arXiv:1706.06083)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evasion.components.common import validate
from evasion.components.common.validate import ParameterError

if TYPE_CHECKING:
    from evasion.components.common.attacks import runner


def check(
    *,
    batch_size: int,
    eps: float,
    eps_step: float,
    max_iter: int,
    num_random_init: int,
    norm: str,
    eot_samples: int,
    seed: int,
    **_: object,
) -> None:
    """Validate the parameters."""
    validate.positive_integer("batch_size", batch_size)
    validate.attack_size(norm, eps, eps_step)
    if eps_step > eps:
        raise ParameterError(
            f"eps_step must not exceed eps. Received: eps_step={eps_step}, eps={eps}", "eps_step", "eps"
        )
    validate.positive_integer("max_iter", max_iter)
    validate.at_least("num_random_init", num_random_init, 0)
    validate.positive_integer("eot_samples", eot_samples)
    validate.seed(seed)


def pgd(
    *,
    dataset: Path,
    model: Path,
    adversarial: Path,
    defenses: str,
    batch_size: int,
    eps: float,
    eps_step: float,
    max_iter: int,
    num_random_init: int,
    norm: str,
    eot_samples: int,
    seed: int,
) -> dict[str, float]:
    """Attack a dataset. The parameters are those of the step.

    Returns:
        Summaries of the distances between the saved images and their parents.
    """
    settings: dict[str, Any] = {
        "eps": eps,
        "eps_step": eps_step,
        "max_iter": max_iter,
        "num_random_init": num_random_init,
    }
    parameters = {"batch_size": batch_size, **settings, "norm": norm, "eot_samples": eot_samples}
    check(**parameters, seed=seed)

    from evasion.components.common.attacks import runner

    return runner.run(
        stage="pgd",
        dataset=dataset,
        model=model,
        adversarial=adversarial,
        defenses=defenses,
        parameters=parameters,
        seed=seed,
        make=make(norm=norm, **settings),
        iterates=True,
    )


def make(*, norm: str, eps: float, eps_step: float, max_iter: int, num_random_init: int) -> "runner.MakeAttack":
    """Return what makes the attack on a target."""
    from evasion.components.pgd import compiled

    def attack_on(target: Any, seed: int) -> "runner.Attack":
        return compiled.projected_gradient_descent(
            target,
            norm=norm,
            eps=eps,
            eps_step=eps_step,
            max_iter=max_iter,
            num_random_init=num_random_init,
            seed=seed,
        )

    return attack_on
