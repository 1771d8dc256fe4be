"""The step `init_model`."""

from kfp.dsl import Model, Output

from evasion.components.step import step


@step
def init_model(
    model: Output[Model],
    model_tag: str = "",
    model_architecture: str = "resnet50",
    weights: str = "imagenet",
    weights_sha256: str = "",
    seed: int = -1,
) -> None:
    """Load a whole pretrained ImageNet model and register it in MLflow.

    It is registered as {experiment}_{model_tag}_{model_architecture}, without the tag where that is blank. Its
    1,000 classes bear their WordNet ids (n01440764 …), as ImageNet's folders do.

    Args:
        model: The model: `model.keras`, which holds its own preprocessing, and its description.
        model_tag: Part of the registered name, or blank.
        model_architecture: resnet50 or vgg16.
        weights: imagenet (downloaded by Keras), none (random, for trials), or a weights file of the whole model,
            local or gs://.
        weights_sha256: What the hash of that file must be, or blank.
        seed: Seed of TensorFlow's randomness from 0 to 4294967295; -1 draws one and records it.
    """
    from evasion.components.body import call

    model.metadata.update(call("init_model", locals()))
