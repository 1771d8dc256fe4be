"""Attack a packed dataset with the Fast Gradient Method (Goodfellow et al. 2015, arXiv:1412.6572)."""

from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.validate import ParameterError


def check(
    *,
    batch_size: int,
    eps: float,
    eps_step: float,
    minimal: bool,
    norm: str,
    eot_samples: int,
    seed: int,
    **_: object,
) -> None:
    """Validate the parameters."""
    validate.positive_integer("batch_size", batch_size)
    validate.attack_size(norm, eps, eps_step)
    if minimal and eps_step > eps:
        raise ParameterError(
            f"eps_step must not exceed eps with minimal. Received: eps_step={eps_step}, eps={eps}", "eps_step", "eps"
        )
    validate.positive_integer("eot_samples", eot_samples)
    validate.seed(seed)


def fgm(
    *,
    dataset: Path,
    model: Path,
    adversarial: Path,
    defenses: str,
    batch_size: int,
    eps: float,
    eps_step: float,
    minimal: bool,
    norm: str,
    eot_samples: int,
    seed: int,
) -> dict[str, float]:
    """Attack a dataset. The parameters are those of the step.

    Returns:
        Summaries of the distances between the saved images and their parents.
    """
    parameters = {
        "batch_size": batch_size,
        "eps": eps,
        "eps_step": eps_step,
        "minimal": minimal,
        "norm": norm,
        "eot_samples": eot_samples,
    }
    check(**parameters, seed=seed)  # type: ignore[arg-type]

    from evasion.components.common.attacks import runner
    from evasion.components.common.data.pixels import to_float, to_pixels, towards

    def make(target: Any, _: int) -> runner.Attack:
        if not minimal:
            from evasion.components.fgm.compiled import fast_gradient_step

            return fast_gradient_step(target, norm=norm, eps=eps)
        attack = fast_gradient_method(
            target.art, norm=norm, eps=eps, eps_step=eps_step, minimal=minimal, batch_size=batch_size
        )
        attack.as_saved = lambda x_adv, x: to_float(towards(x_adv, to_pixels(x)))
        return runner.from_floats(
            target, lambda x, y: attack.generate(x, y=y), lambda: {"minimal_eps": attack.smallest}
        )

    return runner.run(
        stage="fgm",
        dataset=dataset,
        model=model,
        adversarial=adversarial,
        defenses=defenses,
        parameters=parameters,
        seed=seed,
        make=make,
        iterates=False,
    )


def fast_gradient_method(
    estimator: Any, *, norm: str, eps: float, eps_step: float, minimal: bool, batch_size: int
) -> Any:
    """Return ART's `FastGradientMethod` with `minimal` counting its steps in integers.

    ART adds up `eps_step` in floating point until the sum exceeds `eps`: with eps 0.3 and eps_step 0.1 it stops at
    0.2, since 0.1 + 0.1 + 0.1 > 0.3. Here step k of floor(eps / eps_step) tries k * eps_step. Up to the step where
    ART stops, the two agree except for the rounding of that sum. After `generate` with `minimal`, `smallest` holds for
    each image the size that changed its prediction, or `""`. The prediction is that of the images which `as_saved`
    returns of the attacked and the original ones: by default the attacked ones themselves, as with ART.

    With norm 1, the step is that of `norms.moved`, where ART puts all of it into one component.
    """
    import numpy as np

    return _counted_class()(
        estimator,
        norm=np.inf if norm == "inf" else int(norm),
        eps=eps,
        eps_step=eps_step,
        minimal=minimal,
        batch_size=batch_size,
    )


def _counted_class() -> Any:
    """Return the subclass of ART's `FastGradientMethod` that `fast_gradient_method` describes."""
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ART warns of frameworks that are not used here
        from art.attacks.evasion import FastGradientMethod

    from evasion.components.common.attacks.norms import moved

    class Counted(FastGradientMethod):  # type: ignore[misc]
        as_saved = staticmethod(lambda x_adv, _: x_adv)

        def generate(self, x: Any, y: Any = None, **options: Any) -> Any:
            if self.minimal and y is not None and not options:
                return self._minimal_perturbation(x, y, None)  # ART's would predict all images twice more, for its log
            return super().generate(x, y=y, **options)

        def _compute_perturbation(self, x: Any, y: Any, mask: Any, *momentum: Any) -> Any:
            if self.norm != 1:
                return super()._compute_perturbation(x, y, mask, *momentum)
            gradient = self.estimator.loss_gradient(x, y)
            return np.where(np.isnan(gradient), np.float32(0), gradient)

        def _apply_perturbation(self, x: Any, perturbation: Any, eps_step: Any) -> Any:
            if self.norm != 1:
                return super()._apply_perturbation(x, perturbation, eps_step)
            return moved(x, perturbation, "1", eps_step).numpy()

        def _minimal_perturbation(self, x: Any, y: Any, mask: Any) -> Any:
            x_adv = x.copy()
            self.smallest: list[float | str] = [""] * len(x)
            for start in range(0, len(x), self.batch_size):
                part = slice(start, start + self.batch_size)
                perturbation = self._compute_perturbation(x[part], y[part], mask)
                unfooled = np.arange(start, min(part.stop, len(x)))
                for step in range(1, steps(self.eps, self.eps_step) + 1):
                    size = step * self.eps_step
                    x_adv[unfooled] = self._apply_perturbation(x[unfooled], perturbation[unfooled - start], size)
                    saved = self.as_saved(x_adv[unfooled], x[unfooled])
                    predicted = self.estimator.predict(saved, batch_size=self.batch_size)
                    same = predicted.argmax(axis=1) == y[unfooled].argmax(axis=1)
                    for index in unfooled[~same]:
                        self.smallest[index] = float(f"{size:.9g}")
                    unfooled = unfooled[same]
                    if not unfooled.size:
                        break
            return x_adv

    return Counted


def steps(eps: float, eps_step: float) -> int:
    """Return how many whole steps of `eps_step` fit into `eps`, allowing for the rounding of decimal fractions."""
    return int(eps / eps_step + 1e-9)
