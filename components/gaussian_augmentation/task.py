"""Add Gaussian noise to every image, as ART's `GaussianAugmentation` does, with a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evasion.components.common import validate

if TYPE_CHECKING:
    import numpy as np

    from evasion.components.common.data.pixels import Pixels
    from evasion.components.common.defenses.transformations import Transformation


def check(*, sigma: float, seed: int, ratio: float = 1.0, **_: object) -> None:
    """Validate the parameters; the settings of a defense-aware attack may leave out the ratio."""
    validate.in_range("ratio", ratio, 0, 1)
    validate.in_range("sigma", sigma, 0, 10, include_low=False)
    validate.seed(seed)


def transformation(*, sigma: float, **_: object) -> Transformation:
    """Return the function that adds noise to one image."""
    import cv2
    import numpy as np

    from evasion.components.common.defenses.transformations import Transformation

    def apply(pixels: Pixels, random: np.random.Generator) -> Pixels:
        noise = random.standard_normal(pixels.shape, dtype=np.float32)
        # OpenCV adds, rounds and clips in one pass over the pixels, in a quarter of the time that NumPy takes.
        noisy = cv2.addWeighted(pixels, 1, noise, 255 * sigma, 0, dtype=cv2.CV_8U)
        return noisy.reshape(pixels.shape)  # type: ignore[return-value]

    return Transformation(apply, random=True)


def gaussian_augmentation(
    *,
    dataset: Path,
    others: Sequence[Path],
    defended: Path,
    perform_data_augmentation: bool,
    ratio: float,
    sigma: float,
    apply_fit: bool,
    apply_predict: bool,
    seed: int,
) -> dict[str, float]:
    """Add noise to a dataset. The parameters are those of the step."""
    check(ratio=ratio, sigma=sigma, seed=seed)

    import numpy as np

    from evasion.components.common import seeding
    from evasion.components.common.defenses.runner import defend

    seed = seeding.resolve(seed)

    def copied(images: int) -> Any:
        """Choose each image at most once; ART draws with replacement.

        A ratio of 1 therefore chooses the whole dataset, as the original's documentation says.
        """
        mask = np.zeros(images, dtype=bool)
        mask[np.random.default_rng(seed).permutation(images)[: int(images * ratio)]] = True
        return mask

    return defend(
        stage="gaussian_augmentation",
        source=dataset,
        others=others,
        output=defended,
        parameters={
            "perform_data_augmentation": perform_data_augmentation,
            "ratio": ratio,
            "sigma": sigma,
            "apply_fit": apply_fit,
            "apply_predict": apply_predict,
            "seed": seed,
        },
        transformation=transformation(sigma=sigma),
        copied=copied if perform_data_augmentation else None,
    )
