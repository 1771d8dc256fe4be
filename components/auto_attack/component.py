"""The step `auto_attack`."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from evasion.components.step import step

PLACE_IN_DEFAULT_EVALUATION = 2
DEFAULTS_IN_EVALUATION = {"budget": "light"}


@step
def auto_attack(
    dataset: Input[Dataset],
    model: Input[Model],
    adversarial: Output[Dataset],
    metrics: Output[Metrics],
    defenses: str = "",
    batch_size: int = 32,
    eps: float = 0.3,
    norm: str = "inf",
    budget: str = "standard",
    max_iter: int = 0,
    num_random_init: int = 0,
    n_target_classes: int = 0,
    n_queries: int = 0,
    members: str = "apgd-ce,apgd-t,square",
    eot_samples: int = 8,
    seed: int = -1,
) -> None:
    """Attack a packed dataset with an ensemble in the style of AutoAttack (Croce and Hein 2020, arXiv:2003.01690).

    The members, in this order: APGD on the cross-entropy (apgd-ce), APGD on the targeted difference-of-logits ratio
    (apgd-t), and Square (square; Andriushchenko et al. 2020, arXiv:1912.00049), which needs no gradient. Each attacks
    only the images that still stand, and behind a random defense those that some draws take back. Behind a defense that
    is not random apgd-t runs twice, the second time along a sum of gradients. The result is not RobustBench's
    AutoAttack number: FAB-T is missing. An image counts as fooled as it is saved, with 8 bits; the draws behind a
    random defense must fool on average.

    The oblivious attacker knows the model but no defense. For each defense in `defenses`, a defense-aware attacker also
    attacks the model behind that defense, with the straight-through gradient (BPDA), averaged over draws if the defense
    is random (EOT; Athalye et al. 2018, arXiv:1802.00420). An attacker moves an image away from the model's prediction,
    not from the true label.

    Args:
        dataset: The images to attack.
        model: The model to fool.
        adversarial: The attacked images: a tar with a dataset for each attacker, auto_attack,
            auto_attack_aware_of_<defense> …
        metrics: Distances between the attacked and the original images; those of further attackers as `<dataset>/…`.
        defenses: The defenses that further attackers know: a JSON object of all settings of each defense, such as
            {"spatial_smoothing": {"window_size": 3}}; blank for none.
        batch_size: Images in a pass through the model.
        eps: Size of the attack in its norm, for pixels in [0, 1]: in (0, 1] for inf, positive for 2.
        norm: inf or 2.
        budget: standard, the paper's (100 iterations, 9 target classes, 5,000 queries, 1 run of each member), or light,
            which suits a laptop (20 iterations, 3 target classes, 200 queries, 1 run).
        max_iter: Steps of a run of APGD; 0 as the budget says.
        num_random_init: Runs of each member from different random starts; 0 as the budget says.
        n_target_classes: Classes that apgd-t aims at, at most those of the model but one; 0 as the budget says.
        n_queries: Candidates that a run of Square tries for an image; 0 as the budget says.
        members: Which members attack, separated by commas, among apgd-ce, apgd-t and square.
        eot_samples: Number of draws to average over if a defense is random, a positive integer.
        seed: Seed of starts, candidates and draws, from 0 to 4294967295; -1 draws a seed and records it.
    """
    from evasion.components.body import call

    metrics.metadata.update(call("auto_attack", locals()))
