"""Smooth every image with a median filter, as ART's `SpatialSmoothing` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from evasion.components.common import validate

if TYPE_CHECKING:
    from evasion.components.common.data.pixels import Pixels
    from evasion.components.common.defenses.transformations import Transformation


LARGEST_WINDOW = 255
"""Pixels on a side. A larger one takes gigabytes for one image; no defense makes sense of it."""


def check(*, window_size: int, seed: int, **_: object) -> None:
    """Validate the parameters."""
    validate.integer_in("window_size", window_size, 1, LARGEST_WINDOW)
    validate.seed(seed)


def transformation(*, window_size: int, **_: object) -> Transformation:
    """Return the median filter over a square window, channel by channel, with the image mirrored at its borders."""
    import cv2

    from evasion.components.common.defenses.transformations import Transformation

    # The median of 8-bit values is one of them, so the filter does not need floats, which ART uses.
    size, reach = (window_size, window_size, 1), window_size // 2

    def smooth(pixels: Pixels, _: object) -> Pixels:
        # OpenCV is hundreds of times as fast as SciPy, but takes only odd windows up to 255 and mirrors an image once.
        if window_size % 2 and 1 <= reach <= min(127, *pixels.shape[:2]):
            # Without this border, OpenCV would repeat the pixels at the edge.
            mirrored = cv2.copyMakeBorder(pixels, reach, reach, reach, reach, cv2.BORDER_REFLECT)
            return cv2.medianBlur(mirrored, window_size)[reach:-reach, reach:-reach].reshape(pixels.shape)  # type: ignore[return-value]

        from scipy.ndimage import median_filter

        return cast("Pixels", median_filter(pixels, size=size, mode="reflect"))

    return Transformation(smooth)


def spatial_smoothing(
    *,
    dataset: Path,
    others: Sequence[Path],
    defended: Path,
    window_size: int,
    apply_fit: bool,
    apply_predict: bool,
    seed: int,
) -> dict[str, float]:
    """Smooth a dataset. The parameters are those of the step."""
    check(window_size=window_size, seed=seed)

    from evasion.components.common.defenses.runner import defend

    return defend(
        stage="spatial_smoothing",
        source=dataset,
        others=others,
        output=defended,
        parameters={
            "window_size": window_size,
            "apply_fit": apply_fit,
            "apply_predict": apply_predict,
            "seed": seed,
        },
        transformation=transformation(window_size=window_size),
    )
