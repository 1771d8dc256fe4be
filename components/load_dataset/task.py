"""Pack a folder of images, or take a packed dataset from MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evasion.components.common import validate
from evasion.components.common.data.header import SPLITS, TESTING
from evasion.components.common.data.resizing import Resizing
from evasion.components.common.models.architectures import ARCHITECTURES
from evasion.components.common.validate import ParameterError

if TYPE_CHECKING:
    from evasion.components.common.models.artifact import Card


def check(
    *,
    data_dir: str,
    model_architecture: str,
    split: str,
    load_dataset_from_mlruns: bool,
    dataset_run_id: str,
    dataset_tar_name: str,
    dataset_name: str,
    shards: int,
    batch_size: int,
    interpolation: str,
    crop_to_aspect_ratio: bool,
    pad_to_aspect_ratio: bool,
    **_: object,
) -> None:
    """Validate the parameters."""
    if model_architecture:
        validate.one_of("model_architecture", model_architecture, ARCHITECTURES)
    Resizing(
        interpolation=interpolation,
        crop_to_aspect_ratio=crop_to_aspect_ratio,
        pad_to_aspect_ratio=pad_to_aspect_ratio,
    )
    validate.one_of("split", split, SPLITS)
    validate.positive_integer("shards", shards)
    validate.positive_integer("batch_size", batch_size)
    if load_dataset_from_mlruns:
        if shards > 1:
            raise ParameterError(f"shards must be 1 with load_dataset_from_mlruns. Received: shards={shards}", "shards")
        for name, value in (
            ("dataset_run_id", dataset_run_id),
            ("dataset_tar_name", dataset_tar_name),
            ("dataset_name", dataset_name),
        ):
            validate.required(name, value, "with load_dataset_from_mlruns")
    else:
        validate.existing_folder("data_dir", data_dir)


def load_dataset(
    *,
    dataset: Path,
    model: Path | None,
    data_dir: str,
    model_architecture: str,
    split: str,
    skip_unreadable: bool,
    load_dataset_from_mlruns: bool,
    dataset_run_id: str,
    dataset_tar_name: str,
    dataset_name: str,
    shards: int,
    batch_size: int,
    interpolation: str,
    crop_to_aspect_ratio: bool,
    pad_to_aspect_ratio: bool,
) -> dict[str, Any]:
    """Write the dataset artifact. The parameters are those of the step.

    Returns:
        `metadata`: images, classes, skipped and sha256, flat; the sha256 of several shards is that of their hashes, one
        on each line. `shards`: the file names of several shards.
    """
    parameters = {
        "data_dir": data_dir,
        "model_architecture": model_architecture,
        "split": split,
        "skip_unreadable": skip_unreadable,
        "load_dataset_from_mlruns": load_dataset_from_mlruns,
        "dataset_run_id": dataset_run_id,
        "dataset_tar_name": dataset_tar_name,
        "dataset_name": dataset_name,
        "shards": shards,
        "batch_size": batch_size,
        "interpolation": interpolation,
        "crop_to_aspect_ratio": crop_to_aspect_ratio,
        "pad_to_aspect_ratio": pad_to_aspect_ratio,
    }
    check(**parameters)  # type: ignore[arg-type]

    from evasion.components.common import tracking
    from evasion.components.common.models.artifact import Card

    card = Card.read(model) if model else None
    shape, resizing = _form(card, parameters)
    with tracking.stage("load_dataset", parameters) as stage_run:
        if load_dataset_from_mlruns:
            skipped = 0
            _download(dataset, dataset_run_id, dataset_tar_name, dataset_name, shape, card)
        else:
            from evasion.components.load_dataset.pack import pack

            skipped = pack(dataset, data_dir, shape, resizing, split, skip_unreadable, shards, batch_size, card)
            if shards == 1:
                stage_run.log_file(dataset, "load_dataset.tar")
            for name in shard_names(shards):
                stage_run.log_file(dataset / name, f"load_dataset-{name}")
        counts, sha256 = _describe([dataset / name for name in shard_names(shards)] or [dataset])
        counts["skipped"] = skipped
        stage_run.log_parameters({"dataset_sha256": sha256})
        stage_run.tag({"dataset_sha256": sha256})
        if stage_run.whole and split == TESTING:
            stage_run.whole.tag({"dataset_sha256": sha256})
        stage_run.log_metrics(counts)
    return {"metadata": {**counts, "sha256": sha256}, "shards": shard_names(shards)}


def _form(card: "Card | None", parameters: Mapping[str, Any]) -> tuple[tuple[int, int, int], Resizing]:
    """Return the shape of the images, and how those of another size are resized."""
    resizing = Resizing.of(parameters)
    if card is None:
        validate.required("model_architecture", parameters["model_architecture"], "unless a model is")
        return ARCHITECTURES[parameters["model_architecture"]].input_shape, resizing

    if parameters["model_architecture"]:
        card.require_architecture(parameters["model_architecture"])
    if resizing not in (Resizing(), card.resizing):
        raise ParameterError(
            f"interpolation, crop_to_aspect_ratio and pad_to_aspect_ratio must be those of the model: {card.resizing}. "
            f"Received: {resizing}",
            *resizing.to_json(),
        )
    return card.input_shape, card.resizing


def _describe(tars: Sequence[Path]) -> tuple[dict[str, int], str]:
    """Return the numbers of images and classes of a dataset in one tar or several, and its hash."""
    from evasion.components.common.data.dataset import Dataset
    from evasion.components.common.files import joined

    images, hashes = 0, []
    for tar in tars:
        with Dataset(tar) as packed:
            images += len(packed)
            classes = len(packed.header.class_names)
            hashes.append(packed.sha256)
    return {"images": images, "classes": classes}, joined(hashes)


def shard_names(shards: int) -> list[str]:
    """Return the file names of several shards in their folder; a single shard has no folder.

    No name is a prefix of another, since a bucket finds files by the beginning of their names.
    """
    return [f"{number:05d}-of-{shards:05d}.tar" for number in range(1, shards + 1)] if shards > 1 else []


def _download(
    dataset: Path, run_id: str, tar_name: str, dataset_name: str, shape: tuple[int, int, int], card: "Card | None"
) -> None:
    """Download a dataset from MLflow; keep it only if it is complete and suits the model."""
    import tempfile

    from evasion.components.common import tracking
    from evasion.components.common.data.dataset import Dataset

    with tempfile.TemporaryDirectory() as temporary:
        tar = tracking.download_dataset(run_id, tar_name, Path(temporary))
        with Dataset(tar, dataset_name) as downloaded:
            if downloaded.header.image_shape != shape:
                raise ValueError(
                    f"The dataset's images are {downloaded.header.image_shape}, but the model takes {shape}: "
                    "take the dataset that was loaded for this model."
                )
            if card is not None:
                card.suited_to(downloaded.header.class_names, shape)
            downloaded.copy_to(dataset)
