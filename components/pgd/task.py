"""Projected Gradient Descent of ART, streamed over a packed dataset (Madry et al. 2018, arXiv:1706.06083)."""

from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.validate import ParameterError


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
    """Hold the parameters to their rules."""
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
    """Attack a dataset; the parameters are those of the step of this name.

    Returns:
        Summaries of the distances between the saved images and their parents.
    """
    parameters = {
        "batch_size": batch_size,
        "eps": eps,
        "eps_step": eps_step,
        "max_iter": max_iter,
        "num_random_init": num_random_init,
        "norm": norm,
        "eot_samples": eot_samples,
    }
    check(**parameters, seed=seed)  # type: ignore[arg-type]

    import numpy as np

    from evasion.components.common.attacks import runner

    def make(target: Any, drawn: int) -> runner.Attack:
        from evasion.components.common.models.classifier import Classifier

        if type(target) is Classifier and norm == "inf":
            from evasion.components.pgd import compiled

            return runner.Attack(
                compiled=compiled.projected_gradient_descent(
                    target,
                    eps=eps,
                    eps_step=eps_step,
                    max_iter=max_iter,
                    num_random_init=num_random_init,
                    starting_points=lambda x: starting_points(drawn, x),
                )
            )
        method = projected_gradient_descent(
            target.art,
            norm=norm,
            eps=eps,
            eps_step=eps_step,
            max_iter=max_iter,
            num_random_init=num_random_init,
            batch_size=batch_size,
        )

        def generate(x: Any, y: Any) -> Any:
            np.random.set_state(starting_points(drawn, x).get_state())  # noqa: NPY002  (where ART draws from)
            return method.generate(x, y=y)

        return runner.Attack(generate, stays_without_gradient=not num_random_init)

    return runner.run(
        stage="pgd",
        dataset=dataset,
        model=model,
        adversarial=adversarial,
        defenses=defenses,
        parameters=parameters,
        seed=seed,
        make=make,
    )


def starting_points(seed: int, x: Any) -> Any:
    """Return the `np.random.RandomState` for a batch: the same whatever was attacked before it."""
    import hashlib

    import numpy as np

    drawn = hashlib.sha256(f"{seed} ".encode() + x.tobytes()).digest()
    return np.random.RandomState(np.frombuffer(drawn, dtype=np.uint32))


def projected_gradient_descent(
    estimator: Any, *, norm: str, eps: float, eps_step: float, max_iter: int, num_random_init: int, batch_size: int
) -> Any:
    """Return ART's `ProjectedGradientDescentNumpy`, which asks the estimator alone for gradients.

    (The class `ProjectedGradientDescent` would take TensorFlow's, which goes around a defense and compiles anew.)
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
