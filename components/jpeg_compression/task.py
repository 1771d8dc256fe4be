"""JPEG compression of every image, as ART's `JpegCompression`."""

import io
from pathlib import Path

from evasion.components.common import checks


def check(*, quality: int, seed: int, **_: object) -> None:
    """Hold the parameters to their rules."""
    checks.integer_in("quality", quality, 1, 100)
    checks.seed(seed)


def jpeg_compression(
    *,
    dataset: Path,
    defended: Path,
    quality: int,
    channels_first: bool,
    apply_fit: bool,
    apply_predict: bool,
    seed: int,
) -> dict[str, float]:
    """Compress a dataset and unpack it again; the parameters are those of the step of this name."""
    check(quality=quality, seed=seed)

    import numpy as np
    from PIL import Image

    from evasion.components.common.dataset import Pixels
    from evasion.components.common.derive import defend

    def compress(pixels: Pixels) -> Pixels:
        """Compress one image of 3 channels as colour, of any other number channel by channel as gray."""
        buffer = io.BytesIO()
        if channels_first:
            pixels = pixels.transpose(1, 2, 0)
        # ART truncates its floats to 8 bits before it compresses; these pixels have 8 bits already.
        image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[:, :, 0])
        image.save(buffer, format="jpeg", quality=quality)
        result = np.asarray(Image.open(buffer)).reshape(pixels.shape)
        return result.transpose(2, 0, 1) if channels_first else result

    def transform(pixels: Pixels) -> Pixels:
        """Hand the image over in the order of axes asked for; artifacts are always channels last."""
        return compress(pixels.transpose(2, 0, 1)).transpose(1, 2, 0) if channels_first else compress(pixels)

    return defend(
        stage="jpeg_compression",
        source=dataset,
        output=defended,
        parameters={
            "quality": quality,
            "channels_first": channels_first,
            "apply_fit": apply_fit,
            "apply_predict": apply_predict,
            "seed": seed,
        },
        transform=lambda image: [transform(image.pixels)],
    )
