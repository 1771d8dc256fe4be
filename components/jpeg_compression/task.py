"""JPEG compression of every image, as ART's `JpegCompression`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evasion.components.common import validate

if TYPE_CHECKING:
    from evasion.components.common.data.pixels import Pixels
    from evasion.components.common.defenses.transformations import Transformation


def check(*, quality: int, seed: int, **_: object) -> None:
    """Hold the parameters to their rules."""
    validate.integer_in("quality", quality, 1, 100)
    validate.seed(seed)


def transformation(*, quality: int, channels_first: bool, **_: object) -> Transformation:
    """Return the way through JPEG and back."""
    import cv2

    from evasion.components.common.data.images import swapped
    from evasion.components.common.defenses.transformations import Transformation

    options = (
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    )

    def compress(pixels: Pixels) -> Pixels:
        """Compress one image of 3 channels as colour, of any other number channel by channel as gray."""
        if channels_first:
            pixels = pixels.transpose(1, 2, 0)
        # ART truncates its floats to 8 bits before it compresses by Pillow; these pixels have 8 bits already. Of
        # OpenCV, with the colours at half the resolution as Pillow has them, the same pixels come in less time.
        _, data = cv2.imencode(".jpg", swapped(pixels), options)
        kind = cv2.IMREAD_COLOR if pixels.shape[-1] == 3 else cv2.IMREAD_GRAYSCALE
        result = swapped(cv2.imdecode(data, kind).reshape(pixels.shape))  # type: ignore[arg-type, union-attr]
        return result.transpose(2, 0, 1) if channels_first else result

    def apply(pixels: Pixels, _: object) -> Pixels:
        """Hand the image over in the order of axes asked for; artifacts are always channels last."""
        return compress(pixels.transpose(2, 0, 1)).transpose(1, 2, 0) if channels_first else compress(pixels)

    return Transformation(apply)


def jpeg_compression(
    *,
    dataset: Path,
    others: Sequence[Path],
    defended: Path,
    quality: int,
    channels_first: bool,
    apply_fit: bool,
    apply_predict: bool,
    seed: int,
) -> dict[str, float]:
    """Compress a dataset and unpack it again; the parameters are those of the step of this name."""
    check(quality=quality, seed=seed)

    from evasion.components.common.defenses.runner import defend

    return defend(
        stage="jpeg_compression",
        source=dataset,
        others=others,
        output=defended,
        parameters={
            "quality": quality,
            "channels_first": channels_first,
            "apply_fit": apply_fit,
            "apply_predict": apply_predict,
            "seed": seed,
        },
        transformation=transformation(quality=quality, channels_first=channels_first),
    )
