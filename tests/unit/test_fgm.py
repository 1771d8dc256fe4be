"""FGM against ART's own class as the oracle, and against the faults of the original."""

import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evasion.components.common.data.dataset import Dataset
from evasion.components.common.data.pixels import to_float, towards
from evasion.components.common.models import classifier
from evasion.components.fgm import task
from evasion.components.fgm.compiled import fast_gradient_step

NORMS = ("inf", "1", "2")
ARTS_NORMS = ("inf", "2")  # with norm 1, ART changes one component
EPS = {"inf": 0.1, "1": 20.0, "2": 2.0}


def art_itself(model, *, norm, eps, eps_step, minimal, batch_size):
    """ART as a user would call it: its class, the whole model with its softmax, ART's own loop."""
    import keras
    from art.attacks.evasion import FastGradientMethod
    from art.estimators.classification import TensorFlowV2Classifier

    estimator = TensorFlowV2Classifier(
        model=model,
        nb_classes=model.output_shape[-1],
        input_shape=model.input_shape[1:],
        loss_object=keras.losses.CategoricalCrossentropy(),
        clip_values=(0.0, 1.0),
    )
    return FastGradientMethod(
        estimator,
        norm=np.inf if norm == "inf" else int(norm),
        eps=eps,
        eps_step=eps_step,
        minimal=minimal,
        batch_size=batch_size,
    )


def ours(model, x, **parameters):
    target = classifier.Classifier(model)
    attack = task.fast_gradient_method(target.art, **parameters)
    labels = np.eye(model.output_shape[-1], dtype=np.float32)[target.probabilities(x).argmax(axis=1)]
    return attack.generate(x, y=labels)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 64])
@pytest.mark.parametrize("minimal", [False, True], ids=["full", "minimal"])
@pytest.mark.parametrize("norm", ARTS_NORMS)
def test_x_adv_is_arts_own(le_net, digits, norm, minimal, batch_size):
    x = to_float(digits.pixels[:40])  # 40 = 5 * 7 + 5 = 32 + 8: the last batch is partial
    parameters = {
        "norm": norm,
        "eps": EPS[norm],
        # An eighth is exact in binary, so that ART's sum of steps reaches eps as well.
        "eps_step": EPS[norm] / 8,
        "minimal": minimal,
        "batch_size": batch_size,
    }
    x_adv = ours(le_net, x, **parameters)
    expected = art_itself(le_net, **parameters).generate(x)
    assert x_adv.dtype == np.float32
    # The sign of a gradient that is float noise around zero may differ between compiled and eager sums.
    same = np.isclose(x_adv, expected, rtol=0, atol=2e-6)
    assert same.mean() >= 0.9999, f"{(~same).sum()} of {same.size} pixels differ"


@pytest.mark.slow
@pytest.mark.parametrize("minimal", [False, True], ids=["full", "minimal"])
@pytest.mark.parametrize("norm", ARTS_NORMS)
def test_x_adv_is_arts_own_on_resnet50(resnet50, photographs, norm, minimal):
    eps = {"inf": 8 / 255, "2": 4.0}[norm]
    parameters = {"norm": norm, "eps": eps, "eps_step": eps / 4, "minimal": minimal, "batch_size": 2}
    x = to_float(photographs)
    x_adv, expected = ours(resnet50, x, **parameters), art_itself(resnet50, **parameters).generate(x)
    assert np.isclose(x_adv, expected, rtol=0, atol=1e-5 * eps).mean() >= 0.999


def test_norm_1_spends_its_eps_where_art_changes_one_component(le_net, digits):
    x, labels = to_float(digits.pixels[:200]), digits.labels[:200]
    target = classifier.Classifier(le_net)
    parameters = {"norm": "1", "eps_step": 1.0, "minimal": False, "batch_size": 50}

    def right(images):
        return (target.outputs(images).argmax(axis=1) == labels).mean()

    arts = art_itself(le_net, eps=100.0, **parameters).generate(x)
    assert np.abs(arts - x).sum(axis=(1, 2, 3)).max() <= 1 + 1e-6
    assert right(arts) > right(x) - 0.03
    shares = [right(ours(le_net, x, eps=eps, **parameters)) for eps in (20.0, 100.0)]
    assert shares[0] < 0.5
    assert shares[1] < 0.15


def test_minimal_reaches_eps_where_arts_float_sum_stops_a_step_early(le_net, digits):
    x = to_float(digits.pixels[:64])
    parameters = {"norm": "inf", "eps": 0.3, "eps_step": 0.1, "minimal": True, "batch_size": 64}
    largest = np.abs(ours(le_net, x, **parameters) - x).max()
    arts = np.abs(art_itself(le_net, **parameters).generate(x) - x).max()
    assert largest == pytest.approx(0.3, abs=1e-6)
    assert arts == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("eps", "eps_step", "expected"),
    [(0.3, 0.1, 3), (0.3, 0.01, 30), (0.1, 0.1, 1), (1.0, 0.3, 3), (8 / 255, 1 / 255, 8), (0.7, 0.1, 7)],
)
def test_steps_are_counted_in_integers(eps, eps_step, expected):
    assert task.steps(eps, eps_step) == expected


def test_minimal_stops_at_the_first_step_that_fools(le_net, digits):
    x = to_float(digits.pixels[:64])
    step = 0.02
    x_adv = ours(le_net, x, norm="inf", eps=0.4, eps_step=step, minimal=True, batch_size=64)
    target = classifier.Classifier(le_net)
    before, after = (target.probabilities(images).argmax(axis=1) for images in (x, x_adv))
    used = np.rint(np.abs(x_adv - x).max(axis=(1, 2, 3)) / step).astype(int)
    assert len(set(used)) > 3  # each image has its own
    direction = ours(le_net, x, norm="inf", eps=1.0, eps_step=1.0, minimal=False, batch_size=64)
    sign = np.sign(direction - x)
    for place in np.flatnonzero((before != after) & (used > 1)):
        # x + sign * eps is clipped, where x is 0 or 1 already the sign may be unknown: the earlier step is rebuilt
        # from the pixels that move, the others do not.
        earlier = np.clip(x[place] + sign[place] * step * (used[place] - 1), 0, 1)[np.newaxis]
        assert target.probabilities(earlier).argmax() == before[place]


@settings(max_examples=40, deadline=None)
@given(norm=st.sampled_from(NORMS), share=st.floats(1e-4, 1), minimal=st.booleans(), levels=st.booleans())
def test_saved_images_keep_the_bound_and_the_range(le_net, digits, norm, share, minimal, levels):
    """In every norm the 8-bit image is within eps of the original."""
    eps = share * {"inf": 1, "1": 100, "2": 10}[norm]
    if levels:
        eps = math.ceil(eps * 255) / 255
    before = digits.pixels[:8]
    x_adv = ours(le_net, to_float(before), norm=norm, eps=eps, eps_step=eps / 3, minimal=minimal, batch_size=5)
    assert x_adv.min() >= 0  # the fault of the original: an attack without clip values
    assert x_adv.max() <= 1
    change = (towards(x_adv, before).astype(np.float64) - before).reshape(len(before), -1) / 255
    size = {"inf": np.inf, "1": 1, "2": 2}[norm]
    assert (np.linalg.norm(change, ord=size, axis=1) <= eps * (1 + 1e-5) + 1e-6).all()


DEFAULTS = {"defenses": "", "batch_size": 32, "eps_step": 0.1, "minimal": False, "eot_samples": 4, "seed": 0}


def test_fault_distances_are_those_of_the_saved_images(run_stage, le_net_artifact, digits_tar):
    adversarial = run_stage(
        task.fgm, dataset=digits_tar, model=le_net_artifact, out="adversarial", norm="inf", eps=0.013, **DEFAULTS
    )
    with Dataset(digits_tar) as before, Dataset(adversarial) as after:
        for clean, attacked in zip(before.samples(), after.samples(), strict=True):
            difference = (attacked.pixels.astype(np.float64) - clean.pixels) / 255
            assert float(attacked.fields["l_2_norm"]) == pytest.approx(np.linalg.norm(difference))
            assert float(attacked.fields["l_infinity_norm"]) == pytest.approx(3 / 255)  # 0.013 is 3.3 levels


def test_fault_images_are_not_stretched_and_none_is_dropped(run_stage, le_net_artifact, digits_tar, digits):
    adversarial = run_stage(
        task.fgm,
        dataset=digits_tar,
        model=le_net_artifact,
        out="adversarial",
        norm="inf",
        eps=0.1,
        **{**DEFAULTS, "batch_size": 7},
    )
    with Dataset(digits_tar) as before, Dataset(adversarial) as after:
        assert len(after) == len(before)
        assert len(before) % 7
        assert after.header.prefix == "adv_"
        pixels = np.stack([sample.pixels for sample in before.samples()])
        saved = [sample.pixels for sample in after.samples()]
        assert all(sample.stem.startswith("adv_") for sample in after.samples())
    import keras

    model = keras.saving.load_model(le_net_artifact / "model.keras", compile=False)
    expected = towards(
        ours(model, to_float(pixels), norm="inf", eps=0.1, eps_step=0.1, minimal=False, batch_size=7), pixels
    )
    assert np.array_equal(np.stack(saved), expected)


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("norm", NORMS)
def test_the_compiled_step_saves_what_the_class_would(le_net, digits, norm, batch_size):
    target = classifier.Classifier(le_net)
    parameters = {"norm": norm, "eps": EPS[norm]}
    method = task.fast_gradient_method(target.art, **parameters, eps_step=1.0, minimal=False, batch_size=batch_size)
    attack = fast_gradient_step(target, **parameters)
    for start in range(0, 40, batch_size):
        pixels = digits.pixels[start : start + batch_size]
        outputs, attacked, without_gradient, _ = astuple(attack.generate(pixels))
        x = to_float(pixels)
        np.testing.assert_array_equal(outputs, target.outputs(x))
        y = np.eye(10, dtype=np.float32)[outputs.argmax(axis=1)]
        np.testing.assert_array_equal(attacked, towards(method.generate(x, y=y), pixels))
        np.testing.assert_array_equal(without_gradient, ~target.loss_gradient(x, y).any(axis=(1, 2, 3)))
    assert (attacked != pixels).any()


@pytest.mark.parametrize("norm", NORMS)
def test_the_compiled_step_takes_nan_gradients_for_zero_as_art_does(le_net, digits, with_nan_gradients, norm):
    pixels = digits.pixels[:20]
    x, target = to_float(pixels), classifier.Classifier(le_net)
    y = np.eye(10, dtype=np.float32)[target.outputs(x).argmax(axis=1)]
    mask = with_nan_gradients(target, x)
    parameters = {"norm": norm, "eps": EPS[norm]}
    art = task.fast_gradient_method(target.art, **parameters, eps_step=1.0, minimal=False, batch_size=20)
    generated = fast_gradient_step(target, **parameters).generate(pixels)
    attacked, without_gradient = generated.pixels, generated.without_gradient
    np.testing.assert_array_equal(attacked, towards(art.generate(x, y=y), pixels))
    np.testing.assert_array_equal(attacked[mask], pixels[mask])
    assert without_gradient.tolist() == [True] + [False] * 19
    assert (attacked[1:] != pixels[1:]).any(axis=(1, 2, 3)).all()


def test_the_gradient_found_with_the_outputs_is_the_one_asked_for(le_net, digits):
    x = to_float(digits.pixels[:20])
    target, other = classifier.Classifier(le_net), classifier.Classifier(le_net)
    outputs = target.attacked_outputs(x)
    np.testing.assert_array_equal(outputs, other.outputs(x))
    labels = outputs.argmax(axis=1)
    for images, named in ((x, labels), (x, (labels + 1) % 10), (1 - x, labels)):
        y = np.eye(10, dtype=np.float32)[named]
        expected = other.loss_gradient(images, y)
        gradient = target.loss_gradient(images, y)
        np.testing.assert_array_equal(gradient, expected)
        gradient += 1  # a change of the returned array must not affect the next call


def test_minimal_asks_only_for_images_that_are_not_yet_fooled(le_net, digits):
    x, asked = to_float(digits.pixels[:64]), []
    target = classifier.Classifier(le_net)
    forward = target.forward
    target.forward = lambda images: asked.append(len(images)) or forward(images)
    y = np.eye(10, dtype=np.float32)[target.attacked_outputs(x).argmax(axis=1)]
    method = task.fast_gradient_method(target.art, norm="inf", eps=0.3, eps_step=0.01, minimal=True, batch_size=64)
    method.generate(x, y=y)
    tried = [round(eps / 0.01) if eps else 30 for eps in method.smallest]
    assert sum(asked) == sum(tried) < 30 * 64


def test_fault_batch_size_is_passed_on(le_net, digits, monkeypatch):
    sizes = []
    target = classifier.Classifier(le_net)
    attack = task.fast_gradient_method(target.art, norm="inf", eps=0.1, eps_step=0.1, minimal=False, batch_size=13)
    gradient = target.gradient
    monkeypatch.setattr(
        type(target.art), "loss_gradient", lambda _, x, y, **__: sizes.append(len(x)) or gradient(x, y).numpy()
    )
    attack.generate(to_float(digits.pixels[:40]), y=np.eye(10, dtype=np.float32)[digits.labels[:40]])
    assert sizes == [13, 13, 13, 1]


def test_gradients_come_from_logits(digits):
    """A softmax that says 1.0 has a gradient of exactly zero; the logits before it do not."""
    import keras

    inputs = keras.Input((28, 28, 1))
    hidden = keras.layers.Dense(10, kernel_initializer=keras.initializers.RandomNormal(stddev=50, seed=1))
    model = keras.Model(inputs, keras.layers.Softmax()(hidden(keras.layers.Flatten()(inputs))))
    target = classifier.Classifier(model)
    x = to_float(digits.pixels[:32])
    probabilities = target.probabilities(x)
    assert (probabilities.max(axis=1) == 1).any()
    assert target.from_logits
    gradients = target.gradient(x, np.eye(10, dtype=np.float32)[(probabilities.argmax(axis=1) + 1) % 10]).numpy()
    assert np.abs(gradients).max(axis=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("ending", ["softmax layer", "softmax activation", "dense softmax", "sigmoid"])
def test_logits_are_found_where_there_are_any(ending):
    import keras

    inputs = keras.Input((4,))
    outputs = {
        "softmax layer": lambda: keras.layers.Softmax()(keras.layers.Dense(3)(inputs)),
        "softmax activation": lambda: keras.layers.Activation("softmax")(keras.layers.Dense(3)(inputs)),
        "dense softmax": lambda: keras.layers.Dense(3, activation="softmax")(inputs),
        "sigmoid": lambda: keras.layers.Dense(3, activation="sigmoid")(inputs),
    }[ending]()
    model = keras.Model(inputs, outputs)
    logits, has_logits = classifier.logits_of(model)
    assert has_logits == (ending != "sigmoid")
    if has_logits:
        x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
        assert np.allclose(keras.ops.softmax(logits(x)), model(x), atol=1e-6)


BAD = [
    ({"eps": 0.0}, r"eps must be in \(0, 1\]. Received: eps=0.0"),
    ({"eps": -0.3}, r"eps must be in \(0, 1\]. Received: eps=-0.3"),
    ({"eps": 1.5}, r"eps must be in \(0, 1\], a share of the pixel range: 1.5/255 is 0.00588. Received: eps=1.5"),
    ({"eps": math.nan}, r"eps must be in \(0, 1\]. Received: eps=nan"),
    ({"eps": math.inf, "norm": "2"}, r"eps must be in \(0, 3,548\]. Received: eps=inf"),
    ({"eps_step": 0.4, "minimal": True}, r"eps_step must not exceed eps with minimal. Received: eps_step=0.4, eps=0.3"),
    ({"eps_step": 0.0}, r"eps_step must be in \(0, 1\]. Received: eps_step=0.0"),
    ({"batch_size": 0}, r"batch_size must be a positive integer. Received: batch_size=0"),
    ({"norm": "3"}, r"norm must be one of inf, 1, 2. Received: norm='3'"),
    ({"seed": -2}, r"seed must be an integer in \[-1, 4294967295\]. Received: seed=-2"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[str(changed) for changed, _ in BAD])
def test_bad_parameters_are_refused_before_anything_is_read(changed, message):
    parameters = {"eps": 0.3, "norm": "inf", **DEFAULTS, **changed}
    nowhere = Path("/nowhere")
    with pytest.raises(ValueError, match=message):
        task.fgm(dataset=nowhere, model=nowhere, adversarial=nowhere, **parameters)
