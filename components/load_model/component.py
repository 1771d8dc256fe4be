"""The step `load_model`."""

from typing import NamedTuple

from kfp.dsl import Model, Output

from evasion.components.step import step


@step
def load_model(model: Output[Model], name: str, model_architecture: str) -> NamedTuple("Outputs", uri=str):  # type: ignore[valid-type]
    """Take a registered model from MLflow.

    Args:
        model: The model: `model.keras` and its description.
        name: Registered name (its newest version), name/version, name@alias, or a models:/ URI.
        model_architecture: What the model must be: shallow_net, le_net, alex_net, resnet50 or vgg16.

    Returns:
        uri: Where the model lies, for pipelines that choose among several models.
    """
    from pathlib import Path

    from evasion.components.load_model import task

    model.metadata.update(task.load_model(model=Path(model.path), name=name, model_architecture=model_architecture))
    return (model.uri,)
