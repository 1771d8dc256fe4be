"""The step `load_dataset`."""

from kfp.dsl import Dataset, Output

from evasion.components.step import step


@step
def load_dataset(
    dataset: Output[Dataset],
    model_architecture: str,
    data_dir: str = "",
    split: str = "testing",
    skip_unreadable: bool = False,
    load_dataset_from_mlruns: bool = False,
    dataset_run_id: str = "",
    dataset_tar_name: str = "",
    dataset_name: str = "",
    shards: int = 1,
    batch_size: int = 32,
) -> list[str]:
    """Pack a folder of images, or take a packed dataset from an MLflow run.

    JPEG, PNG, BMP, GIF and WebP images of any mode become 8-bit RGB or gray images of the size that the
    architecture takes (bilinear, not cropped). No image is left out unless skip_unreadable says so.

    Args:
        dataset: The packed dataset: one tar of PNGs with their labels and where they come from. With several shards, a
            folder of such tars, for a loop that imports each by its address.
        model_architecture: Decides size and channels of the images: shallow_net, le_net, alex_net, resnet50 or vgg16.
        data_dir: Folder of one folder a class, local or gs://bucket/prefix. Not used with load_dataset_from_mlruns.
        split: training or testing. Defenses apply to the first by apply_fit, to the second by apply_predict.
        skip_unreadable: Leave out images that cannot be read, and record them, instead of failing.
        load_dataset_from_mlruns: Take the dataset from an MLflow run instead of data_dir.
        dataset_run_id: The MLflow run of the stage that made the dataset, or of its pipeline.
        dataset_tar_name: Name of that run's artifact, such as fgm.tar.
        dataset_name: Name of the folder in that tar, such as fgm.
        shards: Over how many tars the images are dealt out, in their order, at most as many as there are batches.
        batch_size: Images that a model is later given at a time: each shard but the last holds whole batches, so that
            results do not depend on the number of shards.

    Returns:
        The addresses of the shards; of a single one, that of the dataset.
    """
    from evasion.components.body import call

    result = call("load_dataset", locals())
    dataset.metadata.update(result["metadata"])
    return [f"{dataset.uri}/{name}" for name in result["shards"]] or [dataset.uri]
