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
    pgd_max_iter: int = 10,
    eot_samples: int = 8,
    seed: int = -1,
) -> None:
    """Measure robust accuracy over the size of FGM, without defense and with each, by two attackers, and controls.

    The oblivious attacker follows the model's gradient, the defense-aware one that of the model behind the defense.
    The gradient is computed once for all sizes. Controls: uniform noise of the same sizes, which must hurt less than
    the attack, and a few steps of PGD at `eps`, which must hurt no less (Carlini et al. 2019, arXiv:1902.06705).

    Args:
        dataset: The images to attack.
        model: The model to fool.
        curve: All numbers, and the predictions of the controls, a row an image.
        metrics: Accuracies of the controls at `eps`: attacked images as computed and as saved, noise, PGD.
        defenses: What else to draw curves of, a JSON object of settings by defense, as `fgm` takes it; blank for none.
        batch_size: Images attacked at a time.
        eps: The size that the controls are made at, and one point of the curve; as of `fgm`.
        norm: inf, 1 or 2.
        eps_values: Further points, numbers separated by commas; blank for sixteen from 1/255 to 1 (norm inf), or as
            large a change of every pixel in the other norms.
        pgd_max_iter: Number of PGD steps in the control, each a quarter of `eps`; 0 for none.
        eot_samples: For a defense that is random, the draws of it that the defense-aware attacker averages over.
        seed: Of noise and draws, from 0 to 4294967295; -1 draws one and records it.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("security_curve", locals()))
