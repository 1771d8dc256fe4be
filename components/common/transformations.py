"""What a preprocessing defense does to one image, for its stage and for an attacker who knows it."""

import hashlib
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evasion.components.common.dataset import Header, Pixels


@dataclass(frozen=True)
class Transformation:
    """A defense of one image.

    Attributes:
        apply: Given an image, uint8 (height, width, channels), and a random generator, returns what it becomes,
            of the same type and shape.
        random: Whether it draws from the generator; if not, it is called with None.
    """

    apply: Callable[[Pixels, Any], Pixels]
    random: bool = False

    def of(self, pixels: Pixels, seed: int, original: str) -> Pixels:
        """Return what a stage makes of an image.

        Args:
            pixels: The image, uint8 (height, width, channels).
            seed: The stage's.
            original: The path that the image had when it was loaded.
        """
        return self.apply(pixels, generator(seed, original) if self.random else None)


@dataclass(frozen=True)
class Defense:
    """A defense that has been over a dataset, read from its provenance.

    Attributes:
        stage: Its name, that of its folder in `evasion.components`.
        parameters: What it was called with.
        seed: The seed that it used.
        transformation: What it does to one image.
    """

    stage: str
    parameters: Mapping[str, Any]
    seed: int
    transformation: Transformation

    def describe(self) -> dict[str, Any]:
        """Return the defense as provenance names it."""
        return {"stage": self.stage, "parameters": dict(self.parameters)}


def defense_of(header: Header) -> Defense:
    """Return the defense that made a dataset.

    Raises:
        ValueError: If no defense of this package made it, or one that does not turn each image into one.
    """
    entry = header.provenance[-1]
    if entry["kind"] != "defense" or not entry["applied"]:
        raise ValueError(
            f"A defense-aware attack takes a dataset that a defense has changed. Received: one by {entry['stage']}"
        )
    stage, parameters = str(entry["stage"]), dict(entry["parameters"])
    if parameters.get("perform_data_augmentation"):
        raise ValueError(
            "A defense-aware attack needs a defense that turns each image into one. "
            "Received: perform_data_augmentation=True"
        )
    module = None
    if re.fullmatch(r"[a-z][a-z0-9_]*", stage):  # it comes out of a file
        try:
            module = importlib.import_module(f"evasion.components.{stage}.task")
        except ModuleNotFoundError:
            module = None
    if not hasattr(module, "transformation"):
        raise ValueError(f"No step of this name has a `transformation`. Received: {stage!r}")
    made: Transformation = module.transformation(**parameters)  # type: ignore[union-attr]
    return Defense(stage, parameters, int(entry["seed"]), made)


def generator(seed: int, original: str) -> np.random.Generator:
    """Return the random generator of one image.

    It depends on the stage's seed and on the path that the image had when it was loaded, so neither on the order of
    images nor on what was done to it since.
    """
    digest = hashlib.sha256(original.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
