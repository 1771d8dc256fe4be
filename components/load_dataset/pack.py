"""Turn a folder of images into the dataset artifact, one tar or several."""

from collections import Counter
from collections.abc import Generator
from contextlib import closing
from itertools import islice
from pathlib import Path

from evasion.components.common import versions
from evasion.components.common.concurrency import ordered_map
from evasion.components.common.data import writer
from evasion.components.common.data.header import Header, Sample
from evasion.components.common.data.images import UnreadableImage, decode
from evasion.components.common.data.sources import ImageFolder, SourceImage, list_images
from evasion.components.common.files import replacing
from evasion.components.common.progress import track
from evasion.components.common.validate import ParameterError
from evasion.components.load_dataset.task import shard_names

THREADS = 8  # a bucket answers slowly, and eight requests wait as well as one
AHEAD = 32
NAMED = 20  # unreadable images that an error names


def pack(
    output: Path,
    data_dir: str,
    shape: tuple[int, int, int],
    split: str,
    skip_unreadable: bool,
    shards: int = 1,
    batch_size: int = 1,
) -> int:
    """Write the dataset and return how many unreadable images were left out.

    Args:
        output: Where the tar goes; with several shards, the folder of their tars.
        data_dir: The folder, local or gs://.
        shape: (height, width, channels) that every image is brought to.
        split: training or testing.
        skip_unreadable: Whether to leave out what cannot be read. All images are then decoded once more before,
            since the dataset says at its beginning how many it holds.
        shards: Over how many tars the images are dealt out, in their order.
        batch_size: All shards but the last hold whole batches of so many images.

    Raises:
        ValueError: If the folder is not as it should be, images are unreadable (naming them), or there are more
            shards than batches.
    """
    folder = list_images(data_dir)
    unreadable = _unreadable(folder, shape) if skip_unreadable else {}
    kept = [image for image in folder.images if image not in unreadable]
    if not kept:
        raise ValueError(
            f"data_dir must hold readable images; none of {len(folder.images)} is. {_names(folder, unreadable)}"
        )
    sizes = _sizes(len(kept), shards, batch_size)
    skipped = {folder.locate(image): reason for image, reason in unreadable.items()}
    parameters = {"data_dir": data_dir, "split": split, "skip_unreadable": skip_unreadable}

    def header(images: list[SourceImage], place: int) -> Header:
        counted = Counter(image.class_index for image in images)
        return Header(
            name="load_dataset",
            class_names=folder.class_names,
            counts=tuple(counted[index] for index in range(len(folder.class_names))),
            image_shape=shape,
            split=split,
            provenance=(
                {
                    "stage": "load_dataset",
                    "kind": "load",
                    "parameters": parameters,
                    **({"shard": [place, shards]} if shards > 1 else {}),
                    "skipped": skipped,
                    "seed": None,
                    "versions": versions.recorded(),
                    "parent_sha256": None,
                },
            ),
        )

    with closing(_samples(folder, kept, shape)) as samples:
        if shards == 1:
            writer.write(output, header(kept, 0), samples)
        else:
            with replacing(output) as tars:
                tars.mkdir()
                images = iter(kept)
                for place, (name, size) in enumerate(zip(shard_names(shards), sizes, strict=True)):
                    described = header(list(islice(images, size)), place)
                    writer.write(tars / name, described, islice(samples, size))
    return len(unreadable)


def _sizes(images: int, shards: int, batch_size: int) -> list[int]:
    """Deal out whole batches, so that a model meets every image in the same batch as in a single tar.

    In another batch, or at another place in it, a result may differ by rounding.
    """
    batches = -(-images // batch_size)
    if shards > batches:
        raise ParameterError(
            f"shards must be at most the number of batches, {batches}: {images} images in batches of {batch_size}. "
            f"Received: shards={shards}, batch_size={batch_size}",
            "shards",
            "batch_size",
        )
    fewest, more = divmod(batches, shards)
    sizes = [batch_size * (fewest + (place < more)) for place in range(shards)]
    return [*sizes[:-1], images - sum(sizes[:-1])]


def _samples(
    folder: ImageFolder, images: list[SourceImage], shape: tuple[int, int, int]
) -> Generator[Sample, None, None]:
    """Yield the images in order; after all of them, fail if some were unreadable, so that the error names them all."""
    failed: dict[SourceImage, str] = {}

    def sample(image: SourceImage) -> Sample | UnreadableImage:
        try:
            pixels = decode(folder.read(image), shape)
        except UnreadableImage as error:
            return error
        return Sample(image.class_index, image.stem, pixels, source=folder.locate(image))

    with closing(ordered_map(sample, images, threads=THREADS, ahead=AHEAD)) as decoded:
        for image, result in zip(images, track(decoded, len(images), "images"), strict=True):
            if isinstance(result, Sample):
                if not failed:
                    yield result
            else:
                failed[image] = str(result)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(images)} images cannot be read; mend or remove them, or set skip_unreadable "
            "(of load_dataset or evaluation). "
            f"{_names(folder, failed)}"
        )


def _unreadable(folder: ImageFolder, shape: tuple[int, int, int]) -> dict[SourceImage, str]:
    def reason(image: SourceImage) -> str:
        try:
            decode(folder.read(image), shape)
        except UnreadableImage as error:
            return str(error)
        return ""

    with closing(ordered_map(reason, folder.images, threads=THREADS, ahead=AHEAD)) as reasons:
        found = zip(folder.images, track(reasons, len(folder.images), "images looked at"), strict=True)
        return {image: why for image, why in found if why}


def _names(folder: ImageFolder, reasons: dict[SourceImage, str]) -> str:
    lines = [f"{folder.locate(image)}: {why}" for image, why in reasons.items()]
    more = f"; and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
    return "; ".join(lines[:NAMED]) + more
