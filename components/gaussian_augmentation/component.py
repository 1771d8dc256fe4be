"""The step `gaussian_augmentation`."""

from kfp.dsl import Dataset, Input, Metrics, Output

from evasion.components.step import step

# Its place among the default defenses of an evaluation.
PLACE_IN_DEFAULT_EVALUATION = 3


@step
def gaussian_augmentation(
    dataset: Input[Dataset],
    defended: Output[Dataset],
    metrics: Output[Metrics],
    perform_data_augmentation: bool = False,
    ratio: float = 1.0,
    sigma: float = 0.1,
    apply_fit: bool = False,
    apply_predict: bool = True,
    seed: int = -1,
) -> None:
    """Add Gaussian noise to every image, or noisy copies to the dataset (Zantedeschi et al. 2017, arXiv:1707.06728).

    Args:
        dataset: The images to defend: all datasets of the tar except those of attacks that know another defense.
        defended: The noisy images.
        metrics: Distances between the noisy and the original images.
        perform_data_augmentation: Whether to keep every image unchanged and add noisy copies of some images.
        ratio: With perform_data_augmentation, the share of images that get a noisy copy, in [0, 1].
        sigma: Standard deviation of the noise, a share of the pixel range, positive.
        apply_fit: Whether to add noise to training data.
        apply_predict: Whether to add noise to testing data.
        seed: Seed of the noise from 0 to 4294967295; -1 draws a seed and records it.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("gaussian_augmentation", locals()))
