"""How images of another size are resized, with the names of Keras: by Pillow, with antialiasing."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from PIL import Image, ImageOps

from evasion.components.common.validate import ParameterError, one_of

METHODS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos3": Image.Resampling.LANCZOS,
}
"""Pillow's methods by the names of Keras's `interpolation`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resizing:
    """How images are resized, as `keras.utils.image_dataset_from_directory` names it.

    Attributes:
        interpolation: A key of `METHODS`.
        crop_to_aspect_ratio: Whether to cut off what exceeds the target's aspect ratio, equally on both sides, instead
            of distorting the image.
        pad_to_aspect_ratio: Whether to add black on both sides instead.
    """

    interpolation: str = "bilinear"
    crop_to_aspect_ratio: bool = False
    pad_to_aspect_ratio: bool = False

    def __post_init__(self) -> None:
        one_of("interpolation", self.interpolation, METHODS)
        if self.crop_to_aspect_ratio and self.pad_to_aspect_ratio:
            raise ParameterError(
                "crop_to_aspect_ratio and pad_to_aspect_ratio exclude each other: set one of them. Received: "
                "crop_to_aspect_ratio=True, pad_to_aspect_ratio=True",
                "crop_to_aspect_ratio",
                "pad_to_aspect_ratio",
            )

    def resize(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Return the picture in a size, (width, height)."""
        if picture.size == size:
            return picture
        method = METHODS[self.interpolation]
        if self.crop_to_aspect_ratio:
            return ImageOps.fit(picture, size, method)
        if self.pad_to_aspect_ratio:
            return ImageOps.pad(picture, size, method, color=0)
        return picture.resize(size, method)

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Self:
        """Return what the parameters of these names say; defaults for those that are missing."""
        return cls(
            **{field.name: parameters[field.name] for field in dataclasses.fields(cls) if field.name in parameters}
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return dataclasses.asdict(self)
