"""Attack a packed dataset with ART's Projected Gradient Descent (Madry et al. 2018, arXiv:1706.06083)."""

from functools import partial
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
        make=make(norm=norm, batch_size=batch_size, **settings),
        iterates=True,
    )


def make(*, norm: str, batch_size: int, **settings: Any) -> "runner.MakeAttack":
    """Return what makes the attack on a target."""
    import numpy as np

    from evasion.components.common.attacks import runner

    def attack_on(target: Any, seed: int) -> runner.Attack:
        if target.compiled and norm == "inf":
            from evasion.components.pgd import compiled

            starts = partial(starting_points, seed)
            return compiled.projected_gradient_descent(target, starting_points=starts, **settings)
        attack = projected_gradient_descent(target.art, norm=norm, batch_size=batch_size, **settings)

        def generate(x: Any, y: Any) -> Any:
            np.random.set_state(starting_points(seed, x).get_state())  # noqa: NPY002  (where ART draws from)
            return attack.generate(x, y=y)

        return runner.from_floats(target, generate)

    return attack_on


def starting_points(seed: int, x: Any) -> Any:
    """Return the `np.random.RandomState` of a batch. It depends on the seed and the batch alone."""
    import hashlib

    import numpy as np

    digest = hashlib.sha256(f"{seed} ".encode() + x.tobytes()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype=np.uint32))


def projected_gradient_descent(
    estimator: Any, *, norm: str, eps: float, eps_step: float, max_iter: int, num_random_init: int, batch_size: int
) -> Any:
    """Return ART's `ProjectedGradientDescentNumpy`, which takes its gradients from the estimator.

    (ART's `ProjectedGradientDescent` takes them from TensorFlow, which bypasses a defense and compiles again.)
    """
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ART warns of frameworks that are not used here
        from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_numpy import (
            ProjectedGradientDescentNumpy,
        )

    return ProjectedGradientDescentNumpy(
        estimator,
        norm=np.inf if norm == "inf" else int(norm),
        eps=eps,
        eps_step=eps_step,
        max_iter=max_iter,
        num_random_init=num_random_init,
        batch_size=batch_size,
        verbose=False,
    )
