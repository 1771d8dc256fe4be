"""Adversarial training against ART's own PGD as the oracle, and against its faults in the original."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from evasion.components.common.data.pixels import to_float
from evasion.components.common.models import architectures, classifier
from evasion.components.common.models import artifact as model_artifact
from evasion.components.fgm.task import fast_gradient_method
from evasion.components.train import madry

CASES = [
    pytest.param(0.3, 0.01, 40, marks=pytest.mark.slow),
    (0.1, 0.05, 7),
    (0.05, 0.2, 3),
    (8 / 255, 2 / 255, 10),
    (0.3, 0.1, 1),
]


@pytest.fixture(scope="module")
def x(digits):
    return to_float(digits.pixels[:32])


@pytest.fixture(scope="module")
def y(digits):
    return np.eye(10, dtype=np.float32)[digits.labels[:32]]


def arts_pgd(network, x, y, *, eps, eps_step, max_iter):
    """ART as a user would call it, over the model with its softmax."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    estimator = TensorFlowV2Classifier(
        model=network,
        nb_classes=10,
        input_shape=(28, 28, 1),
        loss_object=keras.losses.CategoricalCrossentropy(),
        clip_values=(0.0, 1.0),
    )
    attack = ProjectedGradientDescent(
        estimator,
        norm=np.inf,
        eps=eps,
        eps_step=eps_step,
        max_iter=max_iter,
        num_random_init=0,
        batch_size=32,
        verbose=False,
    )
    return attack.generate(x, y=y)


@pytest.mark.parametrize(("eps", "eps_step", "max_iter"), CASES)
def test_perturb_is_arts_pgd(le_net, x, y, eps, eps_step, max_iter):
    logits, _ = classifier.logits_of(le_net)
    attack = {"eps": eps, "eps_step": eps_step, "max_iter": max_iter}
    expected = arts_pgd(le_net, x, y, **attack)

    def perturb(x, y):
        return madry.perturb(logits, x, y, x, **attack)

    # Without AutoGraph, as Keras compiles a training step.
    for perturbed in (perturb, tf.function(perturb, autograph=False)):
        x_adv = perturbed(tf.constant(x), tf.constant(y)).numpy()
        # A gradient that is float noise around zero may have another sign, and then the steps after it differ too.
        assert np.isclose(x_adv, expected, rtol=0, atol=1e-5).mean() > 0.99
        assert np.abs(x_adv - x).max() <= eps + 1e-6
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


def test_perturb_begins_at_its_start(le_net, x, y):
    logits, _ = classifier.logits_of(le_net)
    start = np.clip(x + np.random.default_rng(0).uniform(-0.1, 0.1, x.shape), 0, 1).astype(np.float32)
    x_adv = madry.perturb(logits, x, y, tf.constant(start), eps=0.1, eps_step=0.001, max_iter=2).numpy()
    assert np.abs(x_adv - start).max() <= 0.002 + 1e-6
    assert np.abs(x_adv - x).max() <= 0.1 + 1e-6


def test_perturb_raises_the_loss_of_the_true_label(le_net, x, y):
    logits, _ = classifier.logits_of(le_net)
    loss = keras.losses.CategoricalCrossentropy()
    losses = [
        float(loss(y, le_net(madry.perturb(logits, x, y, tf.constant(x), eps=0.2, eps_step=0.05, max_iter=steps))))
        for steps in (1, 2, 4)
    ]
    assert float(loss(y, le_net(x))) < losses[0] < losses[1] < losses[2]


def trained(x, y, *, eager=False, batch_size=32, **changed):
    """The weights of a small model after an epoch of adversarial training."""
    network = architectures.build("shallow_net", 10, "none", "", 0)
    network = madry.adversarially_trained(network, **{"eps": 0.3, "eps_step": 0.1, "max_iter": 3} | changed)
    network.compile(optimizer=keras.optimizers.SGD(0.1), loss="categorical_crossentropy", run_eagerly=eager)
    network.fit(x, y, batch_size=batch_size, epochs=1, shuffle=False, verbose=0)
    return network.get_weights()


@pytest.mark.parametrize("changed", [{"eps": 0.1}, {"eps_step": 0.02}, {"max_iter": 1}], ids=["eps", "step", "iter"])
def test_fault_every_parameter_of_pgd_has_its_effect(x, y, changed):
    usual, again, other = (trained(x, y), trained(x, y), trained(x, y, **changed))
    assert all(np.array_equal(a, b) for a, b in zip(usual, again, strict=True))
    assert not np.allclose(usual[0], other[0], atol=1e-5)


def test_every_image_of_every_batch_is_attacked_from_a_random_start(x, y, monkeypatch):
    seen = []
    perturb = madry.perturb

    def spied(logits, x, y, start, **attack):
        x_adv = perturb(logits, x, y, start, **attack)
        seen.append((x.numpy(), start.numpy(), x_adv.numpy(), attack))
        return x_adv

    monkeypatch.setattr(madry, "perturb", spied)
    trained(x, y, eager=True, batch_size=12)
    assert [len(images) for images, *_ in seen] == [12, 12, 8]
    assert np.array_equal(np.concatenate([images for images, *_ in seen]), x)
    noises = []
    for images, start, x_adv, attack in seen:
        assert attack == {"eps": 0.3, "eps_step": 0.1, "max_iter": 3}
        assert start.min() >= 0
        assert start.max() <= 1
        assert np.abs(start - images).max() <= 0.3 + 1e-6
        assert np.abs(x_adv - images).max(axis=(1, 2, 3)).min() > 0.2
        noises.append((start - images)[:8])
    assert not np.allclose(noises[0], noises[1])
    assert max(noise.max() for noise in noises) > 0.29  # the whole ball is drawn from


def test_a_step_learns_from_the_attacked_images_alone(x, y, monkeypatch):
    """With the attack's outcome known, the step must be that of plain training on it."""
    outcome = np.random.default_rng(0).random(x.shape, dtype=np.float32)
    monkeypatch.setattr(madry, "perturb", lambda *_, **__: tf.constant(outcome))
    weights = trained(x, y)
    plain = architectures.build("shallow_net", 10, "none", "", 0)
    plain.compile(optimizer=keras.optimizers.SGD(0.1), loss="categorical_crossentropy")
    plain.train_on_batch(outcome, y)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(weights, plain.get_weights(), strict=True))


def test_the_attack_follows_the_weights_as_they_train(x, y):
    network = architectures.build("le_net", 10, "none", "", 0)
    defended = madry.adversarially_trained(network, eps=0.3, eps_step=0.1, max_iter=1)
    attacked = {id(weight) for weight in defended._attacked.weights}
    assert attacked == {id(weight) for weight in network.weights} == {id(weight) for weight in defended.weights}


def test_a_model_without_logits_is_refused():
    inputs = keras.Input((28, 28, 1))
    outputs = keras.layers.Dense(2, activation="sigmoid")(keras.layers.Flatten()(inputs))
    with pytest.raises(ValueError, match="softmax over logits"):
        madry.adversarially_trained(keras.Model(inputs, outputs), eps=0.3, eps_step=0.1, max_iter=1)


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that were attacked, in order."""
    sizes = []
    perturb = madry.perturb

    def spied(logits, x, y, start, **attack):
        sizes.append(len(x))
        return perturb(logits, x, y, start, **attack)

    monkeypatch.setattr(madry, "perturb", spied)
    tf.config.run_functions_eagerly(True)
    yield sizes
    tf.config.run_functions_eagerly(False)


def test_fault_pgd_training_honours_epochs_batch_size_and_validation_split(train, digits_tar, batches):
    result = train(digits_tar, apply_defense=True, epochs=1.5, batch_size=24, validation_split=0.25, max_iter=2)
    assert batches == [24, 24, 12, 24]  # 60 of 80 images; 1.5 epochs of three batches are rounded to four
    assert result["metrics"]["epochs_trained"] == 2
    assert {"training_val_loss", "training_val_accuracy"} <= set(result["metrics"])


def test_fault_pgd_training_honours_seed_and_register_model(train, digits_tar, mlflow_store):
    models = {}
    for name, seed, register_model in (("one", 1, True), ("again", 1, False), ("other", 2, False)):
        result = train(
            digits_tar,
            model=name,
            seed=seed,
            register_model=register_model,
            log_model=name != "other",
            apply_defense=True,
            max_iter=2,
            eps_step=0.1,
        )
        models[name] = model_artifact.load(result["folder"]).get_weights()
        assert result["card"]["name"] == ("evasion_shallow_net" if register_model else "")
    assert all(np.array_equal(a, b) for a, b in zip(models["one"], models["again"], strict=True))
    assert not np.array_equal(models["one"][0], models["other"][0])
    (registered,) = mlflow_store.search_model_versions("name = 'evasion_shallow_net'")
    assert int(registered.version) == 1


@pytest.mark.slow
def test_an_adversarially_trained_model_is_more_robust(train, make_dataset, digits):
    order = np.argsort(digits.labels[:600], kind="stable")
    data = make_dataset(digits.pixels[:600][order], digits.labels[:600][order].tolist(), "0123456789")
    x, y = to_float(digits.pixels[1000:1300]), digits.labels[1000:1300]
    clean, robust = {}, {}
    for apply_defense in (False, True):
        result = train(
            data,
            model=f"defended_{apply_defense}",
            model_architecture="le_net",
            apply_defense=apply_defense,
            epochs=10.0,
            batch_size=32,
            eps=0.15,
            eps_step=0.07,
            max_iter=3,
        )
        target = classifier.Classifier(model_artifact.load(result["folder"]))
        attack = fast_gradient_method(target.art, norm="inf", eps=0.15, eps_step=0.15, minimal=False, batch_size=100)
        x_adv = attack.generate(x, y=np.eye(10, dtype=np.float32)[target.probabilities(x).argmax(axis=1)])
        clean[apply_defense] = (target.probabilities(x).argmax(axis=1) == y).mean()
        robust[apply_defense] = (target.probabilities(x_adv).argmax(axis=1) == y).mean()
    assert min(clean.values()) > 0.8, clean
    assert robust[True] > robust[False] + 0.1, robust  # by 0.19 where this was measured
