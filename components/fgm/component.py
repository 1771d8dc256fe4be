"""The step `fgm`."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from evasion.components.step import step

# Its place among the default attacks of an evaluation.
PLACE_IN_DEFAULT_EVALUATION = 1


@step
def fgm(
    dataset: Input[Dataset],
    model: Input[Model],
    adversarial: Output[Dataset],
    metrics: Output[Metrics],
    defenses: str = "",
    batch_size: int = 32,
    eps: float = 0.3,
    eps_step: float = 0.1,
    minimal: bool = False,
    norm: str = "inf",
    eot_samples: int = 8,
    seed: int = -1,
) -> None:
    """Attack a packed dataset with the Fast Gradient Method (Goodfellow et al. 2015, arXiv:1412.6572).

    The oblivious attacker knows the model but no defense. For each defense in `defenses`, a defense-aware attacker also
    attacks the model behind that defense, with the straight-through gradient (BPDA), averaged over draws if the defense
    is random (EOT; Athalye et al. 2018, arXiv:1802.00420). An attacker moves an image away from the model's prediction,
    not from the true label. Images are saved with 8 bits, rounded towards the original: what is saved never exceeds
    eps, and with norm inf a change below 1/255 is lost.

    With norm 1, eps is spent over pixels in order of their absolute gradient, each within [0, 1]. ART puts all of it
    into one pixel and clips.

    Args:
        dataset: The images to attack.
        model: The model to fool.
        adversarial: The attacked images: a tar with a dataset for each attacker, fgm, fgm_aware_of_<defense> …
        metrics: Distances between the attacked and the original images; those of further attackers as `<dataset>/…`.
        defenses: The defenses that further attackers know: a JSON object of all settings of each defense, such as
            {"spatial_smoothing": {"window_size": 3}}; blank for none.
        batch_size: Images attacked at a time.
        eps: Size of the attack in its norm, for pixels in [0, 1]: in (0, 1] for inf, positive for 1 and 2.
        eps_step: With minimal, the increment of the size between attempts, positive, at most eps.
        minimal: Whether to search for the smallest multiple of eps_step, up to eps, that changes the prediction.
        norm: inf, 1 or 2.
        eot_samples: Number of draws to average over if a defense is random, a positive integer.
        seed: Seed of these draws, from 0 to 4294967295; -1 draws a seed and records it.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("fgm", locals()))
