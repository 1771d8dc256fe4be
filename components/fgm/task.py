"""The Fast Gradient Method of ART, streamed over a packed dataset (Goodfellow et al. 2015, arXiv:1412.6572)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evasion.components.common import checks

NORMS = ("inf", "1", "2")
HALF_LEVEL = 1 / 510  # half of an 8-bit step: a smaller change is rounded away when the image is saved


def check(*, batch_size: int, eps: float, eps_step: float, minimal: bool, norm: str, seed: int, **_: object) -> None:
    """Hold the parameters to their rules."""
    checks.positive_integer("batch_size", batch_size)
    checks.one_of("norm", norm, NORMS)
    # A share of the full pixel range bounds one pixel; the norms 1 and 2 add up all of them.
    checks.in_range("eps", eps, 0, 1 if norm == "inf" else float("inf"), include_low=False)
    checks.in_range("eps_step", eps_step, 0, include_low=False)
    if minimal and eps_step > eps:
        raise ValueError(f"eps_step must not exceed eps with minimal. Received: eps_step={eps_step}, eps={eps}")
    checks.seed(seed)


def fgm(
    *,
    dataset: Path,
    model: Path,
    adversarial: Path,
    batch_size: int,
    eps: float,
    eps_step: float,
    minimal: bool,
    norm: str,
    seed: int,
) -> dict[str, float]:
    """Attack a dataset; the parameters are those of the step of this name.

    Returns:
        Summaries of the distances between the saved images and their parents.
    """
    own = {"batch_size": batch_size, "eps": eps, "eps_step": eps_step, "minimal": minimal, "norm": norm}
    check(**own, seed=seed)  # type: ignore[arg-type]

    from evasion.components.common import derive, seeding, tracking, versions
    from evasion.components.common.dataset import Dataset
    from evasion.components.common.model import Card

    used = {**own, "seed": seeding.resolve(seed)}
    with tracking.stage("fgm", used) as run, Dataset(dataset) as clean:
        card = Card.read(model)
        card.indices_of(clean.header.class_names, clean.header.image_shape)  # refused before TensorFlow is loaded

        from evasion.components.common import classifier

        target = classifier.load(model)
        header = clean.header.derive(
            name="fgm",
            prefix="adv_",
            entry={
                "stage": "fgm",
                "kind": "attack",
                "parameters": own,
                "seed": used["seed"],
                "versions": versions.recorded(model=True),
                "parent_sha256": clean.sha256,
                "model_sha256": card.sha256,
                "gradient_from_logits": target.from_logits,
            },
        )
        attack = fast_gradient_method(
            target.art, norm=norm, eps=eps, eps_step=eps_step, minimal=minimal, batch_size=batch_size
        )
        described = derive.write(
            adversarial, header, "adv_", _changes(clean, target, attack, card.class_names), "images"
        )
        run.log_metrics(described)
        run.log_file(adversarial, "fgm.tar")
    return described


def fast_gradient_method(
    estimator: Any, *, norm: str, eps: float, eps_step: float, minimal: bool, batch_size: int
) -> Any:
    """Return ART's `FastGradientMethod`, but for how `minimal` counts its steps.

    ART adds up `eps_step` in floating point until the sum exceeds `eps`: with eps 0.3 and eps_step 0.1 it stops at
    0.2, since 0.1 + 0.1 + 0.1 > 0.3. Here step k of floor(eps / eps_step) tries k * eps_step. Up to the step where
    ART stops the two agree but for the rounding of that sum.
    """
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ART warns of frameworks that are not used here
        from art.attacks.evasion import FastGradientMethod

    class Counted(FastGradientMethod):  # type: ignore[misc]
        def _minimal_perturbation(self, x: Any, y: Any, mask: Any) -> Any:
            x_adv = x.copy()
            for start in range(0, len(x), self.batch_size):
                part = slice(start, start + self.batch_size)
                perturbation = self._compute_perturbation(x[part], y[part], mask)
                unfooled = np.arange(start, min(part.stop, len(x)))
                for step in range(1, steps(self.eps, self.eps_step) + 1):
                    x_adv[unfooled] = self._apply_perturbation(
                        x[unfooled], perturbation[unfooled - start], step * self.eps_step
                    )
                    predicted = self.estimator.predict(x_adv[unfooled], batch_size=self.batch_size)
                    unfooled = unfooled[predicted.argmax(axis=1) == y[unfooled].argmax(axis=1)]
                    if not unfooled.size:
                        break
            return x_adv

    return Counted(
        estimator,
        norm=np.inf if norm == "inf" else int(norm),
        eps=eps,
        eps_step=eps_step,
        minimal=minimal,
        batch_size=batch_size,
    )


def steps(eps: float, eps_step: float) -> int:
    """Return how many whole steps of `eps_step` fit into `eps`, forgiving the rounding of decimal fractions."""
    return int(eps / eps_step + 1e-9)


def _changes(clean: Any, target: Any, attack: Any, class_names: tuple[str, ...]) -> Iterator[Any]:
    """Attack batch by batch.

    The labels are the model's own predictions, not the true ones, which would leak them into the image (Kurakin et
    al. 2017, arXiv:1611.01236): what ART does with `y=None`, in one prediction of which the confidence is kept.
    """
    import numpy as np

    from evasion.components.common import classifier
    from evasion.components.common.dataset import to_pixels
    from evasion.components.common.derive import Change

    for batch in clean.batches(attack.batch_size):
        x = classifier.stack(batch)
        probabilities = target.probabilities(x)
        predicted = probabilities.argmax(axis=1)
        x_adv = attack.generate(x, y=np.eye(len(class_names), dtype=np.float32)[predicted])
        for place, sample in enumerate(batch):
            fields = {
                "clean_prediction": class_names[predicted[place]],
                "clean_confidence": f"{probabilities[place, predicted[place]]:.9g}",
                # FGM moves an image unless its gradient is zero everywhere.
                "zero_gradient": int(np.array_equal(x[place], x_adv[place])),
            }
            yield Change(sample, to_pixels(x_adv[place]), fields=fields)
