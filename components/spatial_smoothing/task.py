"""Median smoothing of every image, as ART's `SpatialSmoothing`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evasion.components.common import checks

if TYPE_CHECKING:
    from evasion.components.common.transformations import Transformation


def check(*, window_size: int, seed: int, **_: object) -> None:
    """Hold the parameters to their rules."""
    checks.positive_integer("window_size", window_size)
    checks.seed(seed)


def transformation(*, window_size: int, **_: object) -> Transformation:
    """Return the median over a square window, channel by channel, the image mirrored at its borders."""
    from scipy.ndimage import median_filter

    from evasion.components.common.transformations import Transformation

    # A median of 8-bit values is one of them, so nothing is lost by not going through floats as ART does.
    size = (window_size, window_size, 1)
    return Transformation(lambda pixels, _: median_filter(pixels, size=size, mode="reflect"))


def spatial_smoothing(
    *, dataset: Path, defended: Path, window_size: int, apply_fit: bool, apply_predict: bool, seed: int
) -> dict[str, float]:
    """Smooth a dataset; the parameters are those of the step of this name."""
    check(window_size=window_size, seed=seed)

    from evasion.components.common.derive import defend

    return defend(
        stage="spatial_smoothing",
        source=dataset,
        output=defended,
        parameters={
            "window_size": window_size,
            "apply_fit": apply_fit,
            "apply_predict": apply_predict,
            "seed": seed,
        },
        transformation=transformation(window_size=window_size),
    )
