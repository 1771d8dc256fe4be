"""Compress every image as JPEG, as ART's `JpegCompression` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evasion.components.common import validate

if TYPE_CHECKING:
    from evasion.components.common.data.pixels import Pixels
    from evasion.components.common.defenses.transformations import Transformation


def check(*, quality: int, seed: int, **_: object) -> None:
    """Validate the parameters."""
    validate.integer_in("quality", quality, 1, 100)
    validate.seed(seed)


def transformation(*, quality: int, channels_first: bool, **_: object) -> Transformation:
    """Return the function that compresses and decompresses one image."""
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
        """Compress an image of 3 channels as colour, any other as gray, channel by channel."""
        if channels_first:
            pixels = pixels.transpose(1, 2, 0)
        # ART truncates its floats to 8 bits and compresses with Pillow; these pixels have 8 bits already. OpenCV, with
        # the colours at half the resolution as in Pillow, gives the same pixels in less time.
        _, data = cv2.imencode(".jpg", swapped(pixels), options)
        flag = cv2.IMREAD_COLOR if pixels.shape[-1] == 3 else cv2.IMREAD_GRAYSCALE
        result = swapped(cv2.imdecode(data, flag).reshape(pixels.shape))  # type: ignore[arg-type, union-attr]
        return result.transpose(2, 0, 1) if channels_first else result

    def apply(pixels: Pixels, _: object) -> Pixels:
        """Pass the image on in the order of axes that `channels_first` asks for; artifacts are always channels last."""
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
    """Compress and decompress a dataset. The parameters are those of the step."""
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
