"""Train one of the architectures on a packed dataset, optionally against PGD."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.data.resizing import Resizing
from evasion.components.common.models.architectures import ARCHITECTURES, PRETRAINED
from evasion.components.common.validate import ParameterError

LARGEST_RATE = 1e38  # that float32 holds
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
    """Validate the parameters."""
    validate.model_tag(model_tag)
    validate.one_of("model_architecture", model_architecture, ARCHITECTURES)
    validate.in_range("epochs", epochs, 0, 100_000, include_low=False)
    validate.positive_integer("batch_size", batch_size)
    validate.in_range("learning_rate", learning_rate, 0, LARGEST_RATE, include_low=False)
    validate.one_of("optimizer", optimizer, OPTIMIZERS)
    validate.in_range("validation_split", validation_split, 0, 1, include_high=False)
    if apply_defense:
        validate.in_range("eps", eps, 0, 1, include_low=False)
        validate.in_range("eps_step", eps_step, 0, 1, include_low=False)
        validate.positive_integer("max_iter", max_iter)
    if model_architecture in PRETRAINED:
        validate.weights("weights", weights)
        validate.sha256("weights_sha256", weights_sha256)
    elif weights not in ("imagenet", "none"):  # pipelines pass these two as defaults to every architecture
        raise ParameterError(
            "weights must be imagenet or none: only the classifiers of keras.applications take a weights file. "
            f"Received: weights={weights!r}",
            "weights",
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
    """Train a model. The parameters are those of the step.

    Returns:
        `metrics`: the losses and accuracies of the best epoch, whose weights are saved, flat, and `trained_accuracy`,
        that of the trained model on up to 200 of its training images without attack. `card`: the model's description.
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

    from evasion.components.common import seeding

    return _train(dataset, model, {**parameters, "seed": seeding.resolve(seed)})


def _train(dataset: Path, model: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Train a model with valid parameters and the seed to use."""
    import dataclasses

    from evasion.components.common import tracking
    from evasion.components.common.data.dataset import Dataset
    from evasion.components.common.models import artifact as model_artifact

    architecture = parameters["model_architecture"]
    with tracking.stage("train", parameters) as stage_run, Dataset(dataset) as data:
        _require(data.header, architecture, parameters["validation_split"])
        stage_run.tag({"dataset_sha256": data.sha256})
        name = ""
        if parameters["register_model"]:
            name = tracking.registered_name(stage_run.experiment, parameters["model_tag"], architecture)
        network, metrics = _fitted_network(data, parameters)
        metrics |= _judged(network, data, parameters, stage_run)
        card = model_artifact.save(
            network,
            model,
            architecture=architecture,
            input_shape=data.header.image_shape,
            class_names=data.header.class_names,
            weights="trained",
            input_range=_input_range(architecture),
            outputs="logits",
            **Resizing.of(data.header.provenance[0]["parameters"] if data.header.provenance else {}).to_json(),
        )
        stage_run.log_metrics(metrics)
        card = _log_model(stage_run, model, card, name)
    return {"metrics": metrics, "card": dataclasses.asdict(card)}


def _input_range(architecture: str) -> str:
    """Return the range of values that the layers behind the preprocessing take."""
    application = ARCHITECTURES[architecture].application
    return application.input_range if application else "0,1"


def _judged(network: Any, data: Any, parameters: Mapping[str, Any], stage_run: Any) -> dict[str, float]:
    """Warn of a training that ended at chance, and return the accuracy on its own images as a metric."""
    import sys

    from evasion.components.train.chance import after_training

    _, training = _split(data, parameters)
    known = after_training(network, data, training, parameters["batch_size"])
    if known.at_chance:
        print(known.warning, file=sys.stderr, flush=True)
        stage_run.tag({"training": "ended at chance"})
    return {"trained_accuracy": known.right / known.images}


def _split(data: Any, parameters: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the indices of the images held out for validation and of those to train on, in random order."""
    import numpy as np

    order = np.random.default_rng(parameters["seed"]).permutation(len(data))
    held_out = round(len(data) * parameters["validation_split"])
    return order[:held_out], order[held_out:]


def _log_model(stage_run: Any, model: Path, card: Any, registered_name: str) -> Any:
    """Log the model artifact, register it unless the name is empty, and return its card with name and version.

    Raises:
        TrackingError: If it was to be registered and is not. It is kept, without a name.
    """
    import dataclasses

    if registered_name:
        card = dataclasses.replace(card, name=registered_name)
        card.write(model)
    version = ""
    try:
        version = stage_run.log_model(model, register_as=registered_name)
    finally:
        card = dataclasses.replace(card, name=registered_name if version else "", version=version)
        card.write(model)
    return card


def _fitted_network(data: Any, parameters: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
    """Build and train the model; return it with its metrics."""
    import contextlib

    import keras
    import tensorflow as tf

    from evasion.components.train import mirrored

    tf.config.experimental.enable_op_determinism()  # one seed, one model, with as many threads
    batch_size = parameters["batch_size"]
    held_out = round(len(data) * parameters["validation_split"])
    strategy = mirrored.strategy([min(batch_size, size) for size in (len(data) - held_out, held_out) if size])
    with strategy.scope() if strategy else contextlib.nullcontext():
        network = _compiled(len(data.header.class_names), parameters, mirrored=strategy is not None)
    metrics = _fit(network, data, parameters, replicas=strategy.num_replicas_in_sync if strategy else 1)
    if not all(map(math.isfinite, metrics.values())):
        raise ParameterError(
            f"Training diverged: its loss is not a finite number. Lower learning_rate. "
            f"Received: learning_rate={parameters['learning_rate']}",
            "learning_rate",
        )
    mirrored.synchronize(network, False)  # with it, rounding would differ on one device
    return keras.Model(network.input, network.output, name=parameters["model_architecture"]), metrics


def _compiled(classes: int, parameters: Mapping[str, Any], *, mirrored: bool) -> Any:
    """Return the untrained model, ready for `fit`; `mirrored` says whether several devices train it."""
    import keras
    import tensorflow as tf

    from evasion.components.common.models import architectures
    from evasion.components.train.mirrored import MeanOverReplicas, synchronize

    network = architectures.build(
        parameters["model_architecture"],
        classes,
        parameters["weights"],
        parameters["weights_sha256"],
        parameters["seed"],
    )
    synchronize(network, mirrored)
    if parameters["apply_defense"]:
        from evasion.components.train.madry import adversarially_trained

        attack = {name: parameters[name] for name in ("eps", "eps_step", "max_iter")}
        network = adversarially_trained(network, **attack)
    network.compile(
        optimizer=getattr(keras.optimizers, _CLASSES[parameters["optimizer"]])(parameters["learning_rate"]),
        loss=MeanOverReplicas() if mirrored else keras.losses.CategoricalCrossentropy(),
        metrics=["accuracy"],
        # On a CPU, XLA compiles for each batch shape and gains nothing.
        jit_compile="auto" if tf.config.list_physical_devices("GPU") and not mirrored else False,
    )
    return network


_CLASSES = {"rmsprop": "RMSprop", "adam": "Adam", "adagrad": "Adagrad", "sgd": "SGD"}


def _require(header: Any, model_architecture: str, validation_split: float) -> None:
    """Raise an error if the data cannot train this model."""
    shape = ARCHITECTURES[model_architecture].input_shape
    if header.image_shape != shape:
        raise ValueError(
            f"{model_architecture} takes images of {shape}, but the dataset has {header.image_shape}: "
            f"load it with model_architecture={model_architecture}."
        )
    present = [name for name, count in zip(header.class_names, header.counts, strict=True) if count]
    if len(present) < 2:
        raise ValueError(f"Training needs images of at least two classes. Received: {', '.join(present) or 'none'}")
    if validation_split and not 0 < round(header.images * validation_split) < header.images:
        raise ParameterError(
            f"validation_split must leave images on both sides of {header.images}. "
            f"Received: validation_split={validation_split}",
            "validation_split",
        )


def _fit(network: Any, data: Any, parameters: Mapping[str, Any], *, replicas: int) -> dict[str, float]:
    """Train for the requested number of epochs, which may be fractional; return the metrics of the best epoch.

    The best epoch is the one of the lowest loss, on validation data if there are any, and the network gets its weights.
    """
    import keras
    import numpy as np

    from evasion.components.train.feed import BestWeights, Feed, Fraction

    epochs, batch_size, seed = (parameters[name] for name in ("epochs", "batch_size", "seed"))
    held_out, training = _split(data, parameters)
    feed = Feed(data, training, batch_size, shuffle_seed=seed, replicas=replicas)
    validation = Feed(data, np.sort(held_out), batch_size, replicas=replicas) if len(held_out) else None
    monitored = "val_loss" if validation else "loss"
    history = network.fit(
        feed,
        epochs=math.ceil(epochs),
        validation_data=validation,
        shuffle=False,  # the feed shuffles with its own seed
        verbose=0,
        callbacks=[
            # Its own "best" is the last epoch that gained min_delta.
            keras.callbacks.EarlyStopping(monitor=monitored, min_delta=1e-2, patience=5),
            BestWeights(monitored),
            Fraction(total=max(1, round(epochs * len(feed)))),
        ],
    ).history
    # A loss that is not a number is the worst of all, and argmin would take it for the best.
    best = int(np.argmin(np.nan_to_num(history[monitored], nan=np.inf)))
    return {f"training_{name}": float(values[best]) for name, values in history.items()} | {
        "best_epoch": float(best + 1),
        "epochs_trained": float(len(history["loss"])),
    }
