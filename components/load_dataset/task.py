"""Pack a folder of images, or take a packed dataset from MLflow."""

from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.models.architectures import ARCHITECTURES
from evasion.components.common.validate import ParameterError

SPLITS = ("training", "testing")


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
    **_: object,
) -> None:
    """Hold the parameters to their rules."""
    validate.one_of("model_architecture", model_architecture, ARCHITECTURES)
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
) -> dict[str, Any]:
    """Write the dataset artifact; the parameters are those of the step of this name.

    Returns:
        `metadata`: images, classes, skipped and sha256, flat; of several shards the hash is that of the lines of
        theirs. `shards`: the files of several shards.
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
    }
    check(**parameters)  # type: ignore[arg-type]

    from evasion.components.common import tracking
    from evasion.components.common.data.dataset import Dataset
    from evasion.components.common.files import joined

    shape = ARCHITECTURES[model_architecture].input_shape
    with tracking.stage("load_dataset", parameters) as run:
        if load_dataset_from_mlruns:
            skipped = 0
            _take(dataset, dataset_run_id, dataset_tar_name, dataset_name, shape)
        else:
            from evasion.components.load_dataset.pack import pack

            skipped = pack(dataset, data_dir, shape, split, skip_unreadable, shards, batch_size)
            if shards == 1:
                run.log_file(dataset, "load_dataset.tar")
            for name in shard_names(shards):
                run.log_file(dataset / name, f"load_dataset-{name}")
        images, hashes = 0, []
        for tar in [dataset / name for name in shard_names(shards)] or [dataset]:
            with Dataset(tar) as packed:
                images += len(packed)
                classes = len(packed.header.class_names)
                hashes.append(packed.sha256)
        counts = {"images": images, "classes": classes, "skipped": skipped}
        sha256 = joined(hashes)
        run.log_parameters({"dataset_sha256": sha256})
        for holder in (run, run.whole):
            if holder and (holder is run or split == "testing"):
                holder.tag({"dataset_sha256": sha256})
        run.log_metrics(counts)
    return {"metadata": {**counts, "sha256": sha256}, "shards": shard_names(shards)}


def shard_names(shards: int) -> list[str]:
    """Return the files of several shards in their folder; a single one has no folder.

    None begins with another's name, since a bucket finds a file by how its name begins.
    """
    return [f"{place:05d}-of-{shards:05d}.tar" for place in range(1, shards + 1)] if shards > 1 else []


def _take(dataset: Path, run_id: str, tar_name: str, dataset_name: str, shape: tuple[int, int, int]) -> None:
    """Fetch a dataset from MLflow and keep it only if it is whole and suits the model."""
    import tempfile

    from evasion.components.common import tracking
    from evasion.components.common.data.dataset import Dataset

    with tempfile.TemporaryDirectory() as temporary:
        tar = tracking.download_dataset(run_id, tar_name, Path(temporary))
        with Dataset(tar, dataset_name) as fetched:
            if fetched.header.image_shape != shape:
                raise ValueError(
                    f"The dataset's images are {fetched.header.image_shape}, the model takes {shape}: "
                    f"give the model_architecture that the dataset was loaded for."
                )
            fetched.copy_to(dataset)
