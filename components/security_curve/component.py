"""The step `security_curve`."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from evasion.components.step import step


@step
def security_curve(
    dataset: Input[Dataset],
    model: Input[Model],
    curve: Output[Artifact],
    metrics: Output[Metrics],
    defenses: str = "",
    batch_size: int = 32,
    eps: float = 0.3,
    norm: str = "inf",
    eps_values: str = "",
    pgd_max_iter: int = 5,
    eot_samples: int = 8,
    seed: int = -1,
) -> None:
    """Measure robust accuracy over the size of the attack, without defense and with each, and controls.

    An image is robust if the model is right on it both without the attack, with the same defense, and under it. The
    attacks are FGM, with one gradient for all sizes, and PGD (Madry et al. 2018, arXiv:1706.06083), which starts each
    size from the images of the size before: an image that is fooled once counts as fooled at all larger sizes. The
    oblivious attacker follows the model's gradient, the defense-aware one that of the model behind the defense. The
    worst case counts an image as robust only if it is so under each of these two and each attacker. Controls:
    uniform noise of the same sizes, which must hurt less than the attack; PGD, which must hurt no less than FGM and
    must reach 0 without a bound (Carlini et al. 2019, arXiv:1902.06705); and how smooth the loss is (Pintor et al.
    2022, arXiv:2106.09947).

    Args:
        dataset: The images to attack.
        model: The model to fool.
        curve: All numbers, and for each image the predictions of the controls and how smooth the loss is.
        metrics: `accuracy_clean`, and the robust accuracy under each control at `eps`: `robust_accuracy_computed` and
            `…_saved` of attacked images as computed and as saved, `…_noise`, `…_pgd`; with each defense `…_<defense>`.
        defenses: What else to draw curves of, a JSON object of settings by defense, as `fgm` takes it; blank for none.
        batch_size: Images attacked at a time.
        eps: The size that the controls are made at, and one point of the curve; as of `fgm`.
        norm: inf, 1 or 2.
        eps_values: Further points, numbers separated by commas; blank for sixteen from 1/255 to 1 (norm inf), or as
            large a change of every pixel in the other norms.
        pgd_max_iter: Number of PGD steps at each size, which would lead 2.5 times the size far; 0 for no PGD.
        eot_samples: For a defense that is random, the draws of it that the defense-aware attacker averages over.
        seed: Of noise and draws, from 0 to 4294967295; -1 draws one and records it.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("security_curve", locals()))
