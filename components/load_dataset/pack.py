"""Pack a folder of images into the dataset artifact, one tar or several shards."""

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from evasion.components.common import versions
from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data import writer
from evasion.components.common.data.header import Header, Sample
from evasion.components.common.data.images import UnreadableImage, decode
from evasion.components.common.data.provenance import LOAD
from evasion.components.common.data.resizing import Resizing
from evasion.components.common.data.sources import ImageFolder, SourceImage, list_images
from evasion.components.common.files import replacing
from evasion.components.common.models.artifact import Card
from evasion.components.common.progress import track
from evasion.components.common.validate import ParameterError
from evasion.components.load_dataset.task import shard_names

THREADS = 8  # a bucket answers slowly, so several requests wait at once
AHEAD = 32
LISTED = 20  # unreadable images that an error message lists


def pack(
    output: Path,
    data_dir: str,
    shape: tuple[int, int, int],
    resizing: Resizing,
    split: str,
    skip_unreadable: bool,
    shards: int = 1,
    batch_size: int = 1,
    model: Card | None = None,
) -> int:
    """Write the dataset; return the number of unreadable images that were left out.

    Args:
        output: The tar to write; with several shards, the folder of their tars.
        data_dir: The folder, local or gs://.
        shape: (height, width, channels) of the dataset's images.
        resizing: How images of another size are resized.
        split: training or testing.
        skip_unreadable: Whether to leave out images that cannot be read. All images are then decoded twice, since the
            number of images is at the beginning of the dataset.
        shards: The number of tars, over which the images are distributed in their order.
        batch_size: The number of images in a batch. All shards but the last contain whole batches.
        model: The model that the dataset is for, if there is one yet.

    Raises:
        ModelError: If that model does not know the classes of the folder.
        ValueError: If the folder is invalid, images are unreadable (the message lists them), or there are more shards
            than batches.
    """
    folder = list_images(data_dir)
    if model is not None:
        model.suited_to(folder.class_names, shape)
    unreadable = _unreadable(folder, shape, resizing) if skip_unreadable else {}
    kept = [image for image in folder.images if image not in unreadable]
    if not kept:
        raise ValueError(
            f"data_dir must contain readable images; none of {len(folder.images)} is. {_list(folder, unreadable)}"
        )
    sizes = _sizes(len(kept), shards, batch_size)
    entry = {
        "parameters": {"data_dir": data_dir, "split": split, "skip_unreadable": skip_unreadable} | resizing.to_json(),
        "skipped": {folder.locate(image): reason for image, reason in unreadable.items()},
    }

    with closing(_samples(folder, kept, shape, resizing)) as samples:
        if shards == 1:
            writer.write(output, _header(folder, kept, shape, split, entry), samples)
        else:
            with replacing(output) as tars:
                tars.mkdir()
                images = iter(kept)
                for index, (name, size) in enumerate(zip(shard_names(shards), sizes, strict=True)):
                    shard_entry = {**entry, "shard": [index, shards]}
                    header = _header(folder, list(islice(images, size)), shape, split, shard_entry)
                    writer.write(tars / name, header, islice(samples, size))
    return len(unreadable)


def _header(
    folder: ImageFolder, images: list[SourceImage], shape: tuple[int, int, int], split: str, entry: Mapping[str, Any]
) -> Header:
    """Return the header of a tar with these images of the folder."""
    counts = Counter(image.class_index for image in images)
    return Header(
        name="load_dataset",
        class_names=folder.class_names,
        counts=tuple(counts[index] for index in range(len(folder.class_names))),
        image_shape=shape,
        split=split,
        provenance=(
            {
                "stage": "load_dataset",
                "kind": LOAD,
                "parameters": entry["parameters"],
                **({"shard": entry["shard"]} if "shard" in entry else {}),
                "skipped": entry["skipped"],
                "seed": None,
                "versions": versions.recorded(),
                "parent_sha256": None,
            },
        ),
    )


def _sizes(images: int, shards: int, batch_size: int) -> list[int]:
    """Return the sizes of the shards in whole batches, so that every image is in the same batch as in a single tar.

    In another batch, or at another position in it, a result may differ by rounding.
    """
    batches = -(-images // batch_size)
    if shards > batches:
        raise ParameterError(
            f"shards must be at most the number of batches, {batches}: {images} images in batches of {batch_size}. "
            f"Received: shards={shards}, batch_size={batch_size}",
            "shards",
            "batch_size",
        )
    batches_per_shard, remainder = divmod(batches, shards)
    sizes = [batch_size * (batches_per_shard + (index < remainder)) for index in range(shards)]
    return [*sizes[:-1], images - sum(sizes[:-1])]


def _samples(
    folder: ImageFolder, images: list[SourceImage], shape: tuple[int, int, int], resizing: Resizing
) -> Generator[Sample, None, None]:
    """Yield the images in order. If some are unreadable, raise an error after all images, so that it lists them all."""
    unreadable: dict[SourceImage, str] = {}

    def sample(image: SourceImage) -> Sample | UnreadableImage:
        try:
            pixels = decode(folder.read(image), shape, resizing)
        except UnreadableImage as error:
            return error
        return Sample(image.class_index, image.stem, pixels, source=folder.locate(image))

    with closing(ordered_map(sample, images, threads=THREADS, ahead=AHEAD)) as decoded:
        for image, result in zip(images, track(decoded, len(images), "images"), strict=True):
            if isinstance(result, Sample):
                if not unreadable:
                    yield result
            else:
                unreadable[image] = str(result)
    if unreadable:
        raise ValueError(
            f"{len(unreadable)} of {len(images)} images cannot be read; repair or remove them, or set skip_unreadable "
            "(of load_dataset or evaluation). "
            f"{_list(folder, unreadable)}"
        )


def _unreadable(folder: ImageFolder, shape: tuple[int, int, int], resizing: Resizing) -> dict[SourceImage, str]:
    """Return the images that cannot be read, with the reasons."""

    def reason_for(image: SourceImage) -> str:
        try:
            decode(folder.read(image), shape, resizing)
        except UnreadableImage as error:
            return str(error)
        return ""

    with closing(ordered_map(reason_for, folder.images, threads=THREADS, ahead=AHEAD)) as reasons:
        checked = zip(folder.images, track(reasons, len(folder.images), "images checked"), strict=True)
        return {image: reason for image, reason in checked if reason}


def _list(folder: ImageFolder, reasons: dict[SourceImage, str]) -> str:
    """Return the first unreadable images with their reasons, for an error message."""
    lines = [f"{folder.locate(image)}: {reason}" for image, reason in reasons.items()]
    rest = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return "; ".join(lines[:LISTED]) + rest
