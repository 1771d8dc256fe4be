"""Steps, projections and starts in the norms inf, 1 and 2."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from evasion.components.common.attacks import draws, norms
from evasion.components.common.data.pixels import to_float

NORMS = ("inf", "1", "2")
ORDER = {"inf": np.inf, "1": 1, "2": 2}


def sizes(change, norm):
    return np.linalg.norm(np.asarray(change, dtype=np.float64).reshape(len(change), -1), ord=ORDER[norm], axis=1)


def images(seed, count=4, shape=(5, 4, 3)):
    """Images with many components at 0 and at 1, where a step has no room."""
    x = np.random.default_rng(seed).uniform(-0.5, 1.5, (count, *shape))
    return np.clip(x, 0, 1).astype(np.float32)


def gradients(seed, shape):
    random = np.random.default_rng(seed + 1000)
    return (random.standard_normal(shape) * random.integers(0, 2, shape)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0.01, 80))
def test_norm_1_is_the_exact_maximum_of_the_linearised_loss(seed, eps):
    x = images(seed)
    gradient = gradients(seed, x.shape)
    x_adv = norms.moved(x, gradient, "1", eps).numpy()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1 + 1e-6
    assert (sizes(x_adv - x.astype(np.float64), "1") <= eps + 1e-5).all()
    for one, to, slope in zip(x, x_adv, gradient, strict=True):
        # A change is the difference of a rise and a fall, both of them not negative.
        slopes, values = slope.ravel().astype(np.float64), one.ravel().astype(np.float64)
        best = linprog(
            np.concatenate([-slopes, slopes]),
            A_ub=np.ones((1, 2 * slopes.size)),
            b_ub=[eps],
            bounds=[(0, 1 - value) for value in values] + [(0, value) for value in values],
        )
        assert ((to - one) * slope).sum() == pytest.approx(-best.fun, rel=1e-4, abs=1e-5)


def test_norm_1_moves_no_component_without_gradient():
    x = images(1)
    gradient = gradients(1, x.shape)
    x_adv = norms.moved(x, gradient, "1", 1000.0).numpy()
    np.testing.assert_array_equal(x_adv[gradient == 0], x[gradient == 0])
    np.testing.assert_allclose(x_adv[gradient > 0], 1, atol=1e-6)
    np.testing.assert_allclose(x_adv[gradient < 0], 0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_change_within_the_ball_is_its_own_projection(norm):
    change = images(3) - images(4)
    np.testing.assert_allclose(norms.projected(change, norm, 100.0), change, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0.01, 20), norm=st.sampled_from(NORMS))
def test_a_projection_is_the_nearest_change_in_the_ball(seed, eps, norm):
    """The mark of a projection p onto a convex set: (change - p) · (q - p) is not positive for any q of the set."""
    change = images(seed) - images(seed + 1)
    nearest = norms.projected(change, norm, eps).numpy().astype(np.float64)
    assert (sizes(nearest, norm) <= eps * (1 + 1e-6) + 1e-6).all()
    assert (np.abs(nearest) <= np.abs(change) + 1e-7).all()
    assert (nearest * change >= 0).all()
    random = np.random.default_rng(seed)
    for place in range(len(change)):
        outward = (change[place] - nearest[place]).ravel()
        others = [norms.drawn(random, change[place].shape, norm, eps).ravel() for _ in range(20)]
        if norm == "1":  # the corners of the ball decide
            others += [*(eps * np.eye(outward.size)), *(-eps * np.eye(outward.size))]
        assert all(outward @ (other - nearest[place].ravel()) <= 1e-4 * (1 + eps) for other in others)


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.2), ("1", 20.0), ("2", 2.0)])
def test_starts_fill_the_ball_and_depend_on_seed_and_image_alone(digits, norm, eps):
    pixels = digits.pixels[:12]

    def starts(images, seed):
        return np.stack([norms.drawn(each, (28, 28, 1), norm, eps) for each in draws.generators(seed, images, 3)])

    together = starts(pixels, 3)
    np.testing.assert_array_equal(
        np.concatenate([starts(pixels[7:], 3), starts(pixels[:7], 3)]), np.roll(together, 5, 0)
    )
    assert not np.array_equal(together, starts(pixels, 4))
    assert (sizes(together, norm) <= eps + 1e-6).all()
    assert (sizes(together, norm) >= 0.95 * eps).all()  # nearly all of a ball of 784 dimensions is near its surface
    assert to_float(pixels).dtype == together.dtype
