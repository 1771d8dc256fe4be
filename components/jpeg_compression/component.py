"""The step `jpeg_compression`."""

from kfp.dsl import Dataset, Input, Metrics, Output

from evasion.components.step import step


@step
def jpeg_compression(
    dataset: Input[Dataset],
    defended: Output[Dataset],
    metrics: Output[Metrics],
    quality: int = 50,
    channels_first: bool = False,
    apply_fit: bool = False,
    apply_predict: bool = True,
    seed: int = -1,
) -> None:
    """Compress every image as JPEG and unpack it (Dziugaite et al. 2016, arXiv:1608.00853; Das et al. 2017).

    Args:
        dataset: The images to defend.
        defended: The images after compression.
        metrics: Distances between the compressed images and those before.
        quality: From 1 (worst) to 100 (best); 95 or lower is advised.
        channels_first: Whether images are handed to the compression with their channels first, and taken back so.
            An artifact's images are always channels last, so their pixels are the same either way.
        apply_fit: Whether to compress training data.
        apply_predict: Whether to compress testing data.
        seed: Recorded; nothing here is random.
    """
    from pathlib import Path

    from evasion.components.jpeg_compression import task

    metrics.metadata.update(
        task.jpeg_compression(
            dataset=Path(dataset.path),
            defended=Path(defended.path),
            quality=quality,
            channels_first=channels_first,
            apply_fit=apply_fit,
            apply_predict=apply_predict,
            seed=seed,
        )
    )
