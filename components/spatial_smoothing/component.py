"""The step `spatial_smoothing`."""

from kfp.dsl import Dataset, Input, Metrics, Output

from evasion.components.step import step

# Its place among the default defenses of an evaluation.
PLACE_IN_DEFAULT_EVALUATION = 1


@step
def spatial_smoothing(
    dataset: Input[Dataset],
    defended: Output[Dataset],
    metrics: Output[Metrics],
    window_size: int = 3,
    apply_fit: bool = False,
    apply_predict: bool = True,
    seed: int = -1,
) -> None:
    """Smooth every image with a median filter (Xu et al. 2018, arXiv:1704.01155).

    Args:
        dataset: The images to defend: all datasets of the tar except those of attacks that know another defense.
        defended: The smoothed images.
        metrics: Distances between the smoothed and the original images.
        window_size: Side of the square window of the median, 1 to 255, applied to each channel; at its edges the image
            is mirrored. An even window reaches one pixel further to the top and left, and uses the upper median.
        apply_fit: Whether to smooth training data.
        apply_predict: Whether to smooth testing data.
        seed: Recorded only; this defense is not random.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("spatial_smoothing", locals()))
