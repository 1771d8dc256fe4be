"""The step `pgd`."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from evasion.components.step import step


@step
def pgd(
    dataset: Input[Dataset],
    model: Input[Model],
    adversarial: Output[Dataset],
    metrics: Output[Metrics],
    defenses: str = "",
    batch_size: int = 32,
    eps: float = 0.3,
    eps_step: float = 0.03,
    max_iter: int = 40,
    num_random_init: int = 1,
    norm: str = "inf",
    eot_samples: int = 8,
    seed: int = -1,
) -> None:
    """Attack a packed dataset with Projected Gradient Descent (Madry et al. 2018, arXiv:1706.06083).

    An oblivious attacker knows the model and no defense. For each defense that `defenses` names there is a further,
    defense-aware one, who aims at the model behind that defense: by the straight-through gradient (BPDA), averaged over
    draws if the defense is random (EOT; Athalye et al. 2018, arXiv:1802.00420). Each moves an image away from the
    prediction for it, not from the true label. The images saved have 8 bits: with norm inf a change under 1/510 is
    lost.

    Args:
        dataset: The images to attack.
        model: The model to fool.
        adversarial: The attacked images, a dataset an attacker in one tar: pgd, pgd_aware_of_<defense> …
        metrics: Distances between the attacked and the original images, of further attackers' under `<dataset>/`.
        defenses: What further attackers know: a JSON object of settings by defense, all that make its transformation,
            such as {"spatial_smoothing": {"window_size": 3}}; blank for none.
        batch_size: Images attacked at a time.
        eps: Size of the attack in its norm, pixels counting from 0 to 1: in (0, 1] for inf, positive for 1 and 2.
        eps_step: Size of one step, positive, at most eps.
        max_iter: Number of steps.
        num_random_init: Random starting points, of which each image keeps the best; 0 starts at the image itself.
        norm: inf, 1 or 2.
        eot_samples: With a defense that is random, the draws of it to average over, a positive integer.
        seed: Of starting points and draws, from 0 to 4294967295; -1 draws one and records it.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("pgd", locals()))
