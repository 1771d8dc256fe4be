"""The step `init_model`."""

from typing import NamedTuple

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
) -> NamedTuple("Outputs", uri=str):  # type: ignore[valid-type]
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

    Returns:
        uri: Where the model lies, for pipelines that choose among several models.
    """
    from pathlib import Path

    from evasion.components.init_model import task

    model.metadata.update(
        task.init_model(
            model=Path(model.path),
            model_tag=model_tag,
            model_architecture=model_architecture,
            weights=weights,
            weights_sha256=weights_sha256,
            seed=seed,
        )
    )
    return (model.uri,)
