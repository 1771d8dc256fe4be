"""Gaussian noise on every image, as ART's `GaussianAugmentation`, with a seed and without its surprises."""

from collections.abc import Sequence
from pathlib import Path

from evasion.components.common import checks


def check(*, ratio: float, sigma: float, seed: int, **_: object) -> None:
    """Hold the parameters to their rules."""
    checks.in_range("ratio", ratio, 0, 1)
    checks.in_range("sigma", sigma, 0, include_low=False)
    checks.seed(seed)


def gaussian_augmentation(
    *,
    dataset: Path,
    defended: Path,
    perform_data_augmentation: bool,
    ratio: float,
    sigma: float,
    apply_fit: bool,
    apply_predict: bool,
    seed: int,
) -> dict[str, float]:
    """Add noise to a dataset; the parameters are those of the step of this name."""
    check(ratio=ratio, sigma=sigma, seed=seed)

    import numpy as np

    from evasion.components.common import derive, seeding
    from evasion.components.common.dataset import Dataset, Header, Pixels, Sample, to_float, to_pixels

    seed = seeding.resolve(seed)
    with Dataset(dataset) as source:
        labels = source.labels
    # Each image at most once, where ART draws with replacement: a ratio of 1 is then the whole dataset, as the
    # original's documentation says it is.
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(labels))[: int(len(labels) * ratio)]] = True

    def noisy(sample: Sample) -> Pixels:
        x = to_float(sample.pixels)
        noise = derive.generator(seed, sample).standard_normal(x.shape, dtype=np.float32)
        return to_pixels(x + np.float32(sigma) * noise)

    def transform(sample: Sample) -> list[Pixels]:
        if not perform_data_augmentation:
            return [noisy(sample)]
        return [sample.pixels, noisy(sample)] if chosen[sample.index] else [sample.pixels]

    def counts(header: Header) -> Sequence[int]:
        added = np.bincount(labels[chosen], minlength=len(header.counts)) if perform_data_augmentation else 0
        return [int(count) for count in np.array(header.counts) + added]

    return derive.defend(
        stage="gaussian_augmentation",
        source=dataset,
        output=defended,
        parameters={
            "perform_data_augmentation": perform_data_augmentation,
            "ratio": ratio,
            "sigma": sigma,
            "apply_fit": apply_fit,
            "apply_predict": apply_predict,
            "seed": seed,
        },
        transform=transform,
        counts=counts,
    )
