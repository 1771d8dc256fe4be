"""Train one of the five architectures on a packed dataset, plainly or against PGD."""

import math
from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.models.architectures import ARCHITECTURES, PRETRAINED
from evasion.components.common.validate import ParameterError

OPTIMIZERS = ("rmsprop", "adam", "adagrad", "sgd")


def check(
    *,
    model_tag: str,
    model_architecture: str,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    optimizer: str,
    validation_split: float,
    apply_defense: bool,
    eps: float,
    eps_step: float,
    max_iter: int,
    weights: str,
    weights_sha256: str,
    seed: int,
    **_: object,
) -> None:
    """Hold the parameters to their rules."""
    validate.model_tag(model_tag)
    validate.one_of("model_architecture", model_architecture, ARCHITECTURES)
    validate.in_range("epochs", epochs, 0, include_low=False)
    validate.positive_integer("batch_size", batch_size)
    validate.in_range("learning_rate", learning_rate, 0, include_low=False)
    validate.one_of("optimizer", optimizer, OPTIMIZERS)
    validate.in_range("validation_split", validation_split, 0, 1, include_high=False)
    if apply_defense:
        validate.in_range("eps", eps, 0, 1, include_low=False)
        validate.in_range("eps_step", eps_step, 0, 1, include_low=False)
        validate.positive_integer("max_iter", max_iter)
    if model_architecture in PRETRAINED:
        validate.weights("weights", weights)
        validate.sha256("weights_sha256", weights_sha256)
    elif weights not in ("imagenet", "none"):  # these two are defaults of pipelines for every architecture
        raise ParameterError(
            f"weights are taken by {' and '.join(PRETRAINED)} alone. Received: weights={weights!r}", "weights"
        )
    validate.seed(seed)


def train(
    *,
    dataset: Path,
    model: Path,
    model_tag: str,
    model_architecture: str,
    epochs: float,
    batch_size: int,
    register_model: bool,
    learning_rate: float,
    optimizer: str,
    validation_split: float,
    apply_defense: bool,
    eps: float,
    eps_step: float,
    max_iter: int,
    weights: str,
    weights_sha256: str,
    seed: int,
) -> dict[str, Any]:
    """Train a model; the parameters are those of the step of this name.

    Returns:
        `metrics`: losses and accuracies of the last epoch, flat; `card`: the model's description.
    """
    parameters = {
        "model_tag": model_tag,
        "model_architecture": model_architecture,
        "epochs": epochs,
        "batch_size": batch_size,
        "register_model": register_model,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "validation_split": validation_split,
        "apply_defense": apply_defense,
        "eps": eps,
        "eps_step": eps_step,
        "max_iter": max_iter,
        "weights": weights,
        "weights_sha256": weights_sha256,
    }
    check(**parameters, seed=seed)  # type: ignore[arg-type]

    import contextlib
    import dataclasses

    from evasion.components.common import seeding, tracking
    from evasion.components.common.data.dataset import Dataset
    from evasion.components.common.models import architectures
    from evasion.components.common.models import artifact as model_artifact

    seed = seeding.resolve(seed)
    with tracking.stage("train", {**parameters, "seed": seed}) as run, Dataset(dataset) as data:
        _require(data.header, model_architecture, validation_split)
        run.tag({"dataset_sha256": data.sha256})
        name = tracking.registered_name(run.experiment, model_tag, model_architecture) if register_model else ""

        import keras
        import tensorflow as tf

        from evasion.components.train import mirrored

        tf.config.experimental.enable_op_determinism()  # same seed, same model, whatever the threads do
        held_out = round(len(data) * validation_split)
        several = mirrored.strategy([min(batch_size, n) for n in (len(data) - held_out, held_out) if n])
        with several.scope() if several else contextlib.nullcontext():
            classes = len(data.header.class_names)
            network = architectures.build(model_architecture, classes, weights, weights_sha256, seed)
            mirrored.synchronize(network, several is not None)
            if apply_defense:
                from evasion.components.train.madry import adversarially_trained

                network = adversarially_trained(network, eps=eps, eps_step=eps_step, max_iter=max_iter)
            network.compile(
                optimizer=getattr(keras.optimizers, _CLASSES[optimizer])(learning_rate),
                loss=mirrored.MeanOverReplicas() if several else keras.losses.CategoricalCrossentropy(),
                metrics=["accuracy"],
                # On a CPU, XLA compiles for each batch shape and gains nothing.
                jit_compile="auto" if tf.config.list_physical_devices("GPU") and not several else False,
            )
        replicas = several.num_replicas_in_sync if several else 1
        metrics = _fit(network, data, epochs, batch_size, validation_split, seed, replicas)
        if not all(map(math.isfinite, metrics.values())):
            raise ParameterError(
                f"Training diverged, its loss is no number any more: lower learning_rate. "
                f"Received: learning_rate={learning_rate}",
                "learning_rate",
            )
        mirrored.synchronize(network, False)  # on one device it would round otherwise
        plain = keras.Model(network.input, network.output, name=model_architecture)
        card = model_artifact.save(
            plain,
            model,
            architecture=model_architecture,
            input_shape=data.header.image_shape,
            class_names=data.header.class_names,
            weights="trained",
        )
        run.log_metrics(metrics)
        if name:
            card = dataclasses.replace(card, name=name)
            card.write(model)
        version = run.log_model(model, register_as=name)
        card = dataclasses.replace(card, name=name if version else "", version=version)
        card.write(model)
    return {"metrics": metrics, "card": dataclasses.asdict(card)}


_CLASSES = {"rmsprop": "RMSprop", "adam": "Adam", "adagrad": "Adagrad", "sgd": "SGD"}


def _require(header: Any, model_architecture: str, validation_split: float) -> None:
    """Refuse data that cannot train this model."""
    shape = ARCHITECTURES[model_architecture].input_shape
    if header.image_shape != shape:
        raise ValueError(
            f"{model_architecture} takes images of {shape}, the dataset has {header.image_shape}: "
            f"load it with model_architecture={model_architecture}."
        )
    present = [name for name, count in zip(header.class_names, header.counts, strict=True) if count]
    if len(present) < 2:
        raise ValueError(f"Training needs images of two classes at least. Received: {', '.join(present) or 'none'}")
    if validation_split and not 0 < round(header.images * validation_split) < header.images:
        raise ParameterError(
            f"validation_split must leave images on both sides of {header.images}. "
            f"Received: validation_split={validation_split}",
            "validation_split",
        )


def _fit(
    network: Any, data: Any, epochs: float, batch_size: int, validation_split: float, seed: int, replicas: int = 1
) -> dict[str, float]:
    """Fit for a float number of epochs and return the metrics of the last."""
    import keras
    import numpy as np

    from evasion.components.train.feed import Feed, Fraction

    order = np.random.default_rng(seed).permutation(len(data))
    held_out = round(len(data) * validation_split)
    feed = Feed(data, order[held_out:], batch_size, shuffle_seed=seed, replicas=replicas)
    validation = Feed(data, np.sort(order[:held_out]), batch_size, replicas=replicas) if held_out else None
    history = network.fit(
        feed,
        epochs=math.ceil(epochs),
        validation_data=validation,
        shuffle=False,  # the feed does it, from its seed
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping(
                monitor="val_loss" if validation else "loss", min_delta=1e-2, patience=5, restore_best_weights=True
            ),
            Fraction(total=max(1, round(epochs * len(feed)))),
        ],
    ).history
    return {f"training_{name}": float(values[-1]) for name, values in history.items()} | {
        "epochs_trained": float(len(history["loss"]))
    }
