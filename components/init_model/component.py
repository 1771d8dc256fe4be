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
    interpolation: str = "bilinear",
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
) -> None:
    """Load a complete pretrained ImageNet model and register it in MLflow.

    It is registered as {experiment}_{model_tag}_{model_architecture}, without the tag if that is blank. Its 1,000
    classes are named by their WordNet ids (n01440764 …), as ImageNet's folders are.

    Args:
        model: The model: `model.keras`, which contains its own preprocessing, and its description.
        model_tag: Part of the registered name, or blank.
        model_architecture: A classifier of keras.applications in lowercase letters, such as resnet50, vgg16 or
            mobilenetv2. Each has its own image size and preprocessing.
        weights: imagenet (downloaded by Keras), none (random, for trials), or a weights file of the complete
            model, local or gs://.
        weights_sha256: The hash that this file must have, or blank.
        seed: Seed of TensorFlow's randomness from 0 to 4294967295; -1 draws a seed and records it.
        interpolation: How images of another size are resized for it: nearest, bilinear, bicubic, area or lanczos3.
        crop_to_aspect_ratio: Whether to cut such images to a square instead of distorting them.
        pad_to_aspect_ratio: Whether to pad them with black instead.
    """
    from evasion.components.body import call

    model.metadata.update(call("init_model", locals()))
