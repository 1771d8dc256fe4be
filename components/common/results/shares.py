"""Shares of images with their 95 % intervals."""

CONFIDENCE = 0.95


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share; (0, 1) where nothing was tried.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest

    if trials == 0:
        return 0.0, 1.0
    found = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def share(name: str, successes: int, trials: int) -> dict[str, float]:
    """Return a share with its interval as `name`, `name_low` and `name_high`; nothing where nothing was tried."""
    if trials == 0:
        return {}
    low, high = interval(successes, trials)
    return {name: successes / trials, f"{name}_low": low, f"{name}_high": high}


def success(successes: int, right_before: int) -> dict[str, float]:
    """Return how many of the images that were right before an attack are wrong now, and their share."""
    counts: dict[str, float] = {"right_before": right_before, "attack_successes": successes}
    return counts | share("attack_success_rate", successes, right_before)
