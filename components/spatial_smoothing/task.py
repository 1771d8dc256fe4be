"""Median smoothing of every image, as ART's `SpatialSmoothing`."""

from pathlib import Path

from evasion.components.common import checks


def check(*, window_size: int, seed: int, **_: object) -> None:
    """Hold the parameters to their rules."""
    checks.positive_integer("window_size", window_size)
    checks.seed(seed)


def spatial_smoothing(
    *, dataset: Path, defended: Path, window_size: int, apply_fit: bool, apply_predict: bool, seed: int
) -> dict[str, float]:
    """Smooth a dataset; the parameters are those of the step of this name."""
    check(window_size=window_size, seed=seed)

    from scipy.ndimage import median_filter

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
        # A median of 8-bit values is one of them, so nothing is lost by not going through floats as ART does.
        transform=lambda image: [median_filter(image.pixels, size=(window_size, window_size, 1), mode="reflect")],
    )
