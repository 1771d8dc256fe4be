"""Turn a folder of images into the dataset artifact."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from evasion.components.common import dataset, versions
from evasion.components.common.concurrency import ordered_map
from evasion.components.common.dataset import Header, Sample
from evasion.components.common.images import UnreadableImage, decode
from evasion.components.common.progress import track
from evasion.components.common.sources import ImageFolder, SourceImage, list_images

THREADS = 8  # a bucket answers slowly, and eight requests wait as well as one
AHEAD = 32
NAMED = 20  # unreadable images that an error names


def pack(output: Path, data_dir: str, shape: tuple[int, int, int], split: str, skip_unreadable: bool) -> int:
    """Write the dataset and return how many unreadable images were left out.

    Args:
        output: Where the tar goes.
        data_dir: The folder, local or gs://.
        shape: (height, width, channels) that every image is brought to.
        split: training or testing.
        skip_unreadable: Whether to leave out what cannot be read. All images are then decoded once more before,
            since the dataset says at its beginning how many it holds.

    Raises:
        ValueError: If the folder is not as it should be, or images are unreadable, naming them.
    """
    folder = list_images(data_dir)
    unreadable = _unreadable(folder, shape) if skip_unreadable else {}
    kept = [image for image in folder.images if image not in unreadable]
    counted = Counter(image.class_index for image in kept)
    if not kept:
        raise ValueError(
            f"data_dir must hold readable images; none of {len(folder.images)} is. {_names(folder, unreadable)}"
        )
    header = Header(
        name="load_dataset",
        class_names=folder.class_names,
        counts=tuple(counted[index] for index in range(len(folder.class_names))),
        image_shape=shape,
        split=split,
        provenance=(
            {
                "stage": "load_dataset",
                "kind": "load",
                "parameters": {"data_dir": data_dir, "split": split, "skip_unreadable": skip_unreadable},
                "skipped": {folder.locate(image): reason for image, reason in unreadable.items()},
                "seed": None,
                "versions": versions.recorded(),
                "parent_sha256": None,
            },
        ),
    )
    dataset.write(output, header, _samples(folder, kept, shape))
    return len(unreadable)


def _samples(folder: ImageFolder, images: list[SourceImage], shape: tuple[int, int, int]) -> Iterator[Sample]:
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
            "(of load_dataset or fgm_evaluation). "
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
