"""The step `jpeg_compression`."""

from kfp.dsl import Dataset, Input, Metrics, Output

from evasion.components.step import step

# Its place among the default defenses of an evaluation.
PLACE_IN_DEFAULT_EVALUATION = 2


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
    """Compress every image as JPEG and decompress it (Dziugaite et al. 2016, arXiv:1608.00853; Das et al. 2017).

    Args:
        dataset: The images to defend: all datasets of the tar except those of attacks that know another defense.
        defended: The images after compression.
        metrics: Distances between the compressed and the original images.
        quality: From 1 (worst) to 100 (best); 95 or lower is advised.
        channels_first: Whether to pass images to the compression with their channels first. The images of an artifact
            are always channels last, so their pixels are the same either way.
        apply_fit: Whether to compress training data.
        apply_predict: Whether to compress testing data.
        seed: Recorded only; this defense is not random.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("jpeg_compression", locals()))
