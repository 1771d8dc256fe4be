"""The step `train`."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from evasion.components.step import step


@step
def train(
    dataset: Input[Dataset],
    model: Output[Model],
    metrics: Output[Metrics],
    model_tag: str = "",
    model_architecture: str = "le_net",
    epochs: float = 30.0,
    batch_size: int = 32,
    register_model: bool = True,
    learning_rate: float = 0.001,
    optimizer: str = "adam",
    validation_split: float = 0.2,
    apply_defense: bool = False,
    eps: float = 0.3,
    eps_step: float = 0.01,
    max_iter: int = 40,
    weights: str = "imagenet",
    weights_sha256: str = "",
    seed: int = -1,
) -> None:
    """Train a model on a packed dataset: categorical cross-entropy, early stopping on the validation loss.

    Training stops early if the validation loss (without a validation set, the training loss) has not decreased by 0.01
    for 5 epochs; the best weights are kept. Classifiers of keras.applications train a new head on a frozen base.

    Args:
        dataset: The training data.
        model: The trained model: `model.keras` and its description.
        metrics: Loss and accuracy of training and validation in the best epoch, whose weights are saved.
        model_tag: Part of the registered name {experiment}_{model_tag}_{model_architecture}, or blank.
        model_architecture: shallow_net, le_net, alex_net, or a classifier of keras.applications in lowercase letters,
            such as resnet50, vgg16 or mobilenetv2.
        epochs: Passes over the data, a positive float: 2.5 are two and half of a third.
        batch_size: Images per training step.
        register_model: Whether to register the model in MLflow.
        learning_rate: Learning rate of the optimizer, positive.
        optimizer: rmsprop, adam, adagrad or sgd.
        validation_split: Share of the images held out for validation, in [0, 1).
        apply_defense: Whether to train against PGD (Madry et al. 2018).
        eps: With apply_defense, the largest change of a pixel, a share of the pixel range, in (0, 1].
        eps_step: With apply_defense, the change of one PGD step, in (0, 1].
        max_iter: With apply_defense, the number of PGD steps.
        weights: Weights of the base of a classifier of keras.applications: imagenet (downloaded by Keras), none
            (random, for trials), or a weights file of the model without its top, local or gs://. The others take no
            weights.
        weights_sha256: The hash that this file must have, or blank.
        seed: Seed of weights, order, dropout and validation set from 0 to 4294967295; -1 draws a seed and records it.
    """
    from evasion.components.body import call

    result = call("train", locals())
    model.metadata.update(result["card"])
    metrics.metadata.update(result["metrics"])
