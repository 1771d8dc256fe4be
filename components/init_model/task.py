"""Build a complete pretrained ImageNet model and register it in MLflow."""

from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.models.architectures import ARCHITECTURES, PRETRAINED
from evasion.components.common.validate import ParameterError


def check(
    *, model_tag: str, model_architecture: str, weights: str, weights_sha256: str, seed: int, **_: object
) -> None:
    """Validate the parameters."""
    validate.model_tag(model_tag)
    if model_architecture not in PRETRAINED:
        raise ParameterError(
            f"model_architecture must be one of {', '.join(PRETRAINED)}, which are pretrained; train the others. "
            f"Received: model_architecture={model_architecture!r}",
            "model_architecture",
        )
    validate.weights("weights", weights)
    validate.sha256("weights_sha256", weights_sha256)
    validate.seed(seed)


def init_model(
    *, model: Path, model_tag: str, model_architecture: str, weights: str, weights_sha256: str, seed: int
) -> dict[str, Any]:
    """Build, save and register the model. The parameters are those of the step.

    Returns:
        The model's description.
    """
    check(
        model_tag=model_tag,
        model_architecture=model_architecture,
        weights=weights,
        weights_sha256=weights_sha256,
        seed=seed,
    )

    import dataclasses

    from evasion.components.common import seeding, tracking
    from evasion.components.common.models import architectures
    from evasion.components.common.models import artifact as model_artifact

    seed = seeding.resolve(seed)
    used = {
        "model_tag": model_tag,
        "model_architecture": model_architecture,
        "weights": weights,
        "weights_sha256": weights_sha256,
        "seed": seed,
    }
    with tracking.stage("init_model", used) as stage_run:
        name = tracking.registered_name(stage_run.experiment, model_tag, model_architecture)
        network = architectures.build_imagenet(model_architecture, weights, weights_sha256, seed)
        card = model_artifact.save(
            network,
            model,
            architecture=model_architecture,
            input_shape=ARCHITECTURES[model_architecture].input_shape,
            class_names=architectures.imagenet_classes(),
            weights=weights,
            name=name,
        )
        version = stage_run.log_model(model, register_as=card.name)
        card = dataclasses.replace(card, name=card.name if version else "", version=version)
        card.write(model)
    return dataclasses.asdict(card)
