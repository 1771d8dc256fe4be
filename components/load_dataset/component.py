"""The step `load_dataset`."""

from kfp.dsl import Dataset, Input, Model, Output

from evasion.components.step import step


@step
def load_dataset(
    dataset: Output[Dataset],
    model: Input[Model] = None,
    model_architecture: str = "",
    data_dir: str = "",
    split: str = "testing",
    skip_unreadable: bool = False,
    load_dataset_from_mlruns: bool = False,
    dataset_run_id: str = "",
    dataset_tar_name: str = "",
    dataset_name: str = "",
    shards: int = 1,
    batch_size: int = 32,
    interpolation: str = "bilinear",
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
) -> list[str]:
    """Pack a folder of images, or take a packed dataset from an MLflow run.

    JPEG, PNG, BMP, GIF, WebP and TIFF images of any mode become 8-bit RGB or gray images of the size that the model
    takes. Images that cannot be read are left out only with skip_unreadable.

    Args:
        dataset: The packed dataset: a tar of PNGs with their labels and origin. With several shards, a folder of such
            tars, for a loop that imports each by its address.
        model: The model that the images are for: it sets their size, their channels and how they are resized.
        model_architecture: The same by the name of an architecture, without a model: shallow_net, le_net, alex_net, or
            a classifier of keras.applications in lowercase letters, such as resnet50.
        data_dir: Folder with a subfolder for each class, local or gs://bucket/prefix. Not used with
            load_dataset_from_mlruns.
        split: training or testing. apply_fit applies defenses to the first, apply_predict to the second.
        skip_unreadable: Whether to leave out and record images that cannot be read, instead of failing.
        load_dataset_from_mlruns: Whether to take the dataset from an MLflow run instead of data_dir.
        dataset_run_id: Id of the MLflow run of the stage that made the dataset, or of its pipeline.
        dataset_tar_name: Name of that run's artifact, such as fgm.tar.
        dataset_name: Name of the folder in that tar, such as fgm.
        shards: Number of tars, over which the images are distributed in order; at most the number of batches.
        batch_size: Batch size of later steps. Each shard but the last contains whole batches, so that results do not
            depend on the number of shards.
        interpolation: Without a model, how images of another size are resized: nearest, bilinear, bicubic, area or
            lanczos3, with antialiasing.
        crop_to_aspect_ratio: Without a model, whether to cut such images to the new aspect ratio instead of distorting
            them.
        pad_to_aspect_ratio: Without a model, whether to pad them with black instead.

    Returns:
        The addresses of the shards, or of the dataset if there is only one.
    """
    from evasion.components.body import call

    result = call("load_dataset", locals())
    dataset.metadata.update(result["metadata"])
    return [f"{dataset.uri}/{name}" for name in result["shards"]] or [dataset.uri]
