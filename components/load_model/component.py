"""The step `load_model`."""

from kfp.dsl import Model, Output

from evasion.components.step import step


@step
def load_model(model: Output[Model], name: str, model_architecture: str) -> None:
    """Download a registered model from MLflow.

    Args:
        model: The model: `model.keras` and its description.
        name: Registered name (its newest version), name/version, name@alias, or a models:/ URI.
        model_architecture: The architecture that the model must have: shallow_net, le_net, alex_net, resnet50 or vgg16.
    """
    from evasion.components.body import call

    model.metadata.update(call("load_model", locals()))
