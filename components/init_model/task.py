"""Build a complete pretrained ImageNet model and register it in MLflow."""

from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.data.resizing import Resizing
from evasion.components.common.models.applications import APPLICATIONS
from evasion.components.common.models.architectures import ARCHITECTURES, PRETRAINED
from evasion.components.common.validate import ParameterError


def check(
    *,
    model_tag: str,
    model_architecture: str,
    weights: str,
    weights_sha256: str,
    seed: int,
    interpolation: str,
    crop_to_aspect_ratio: bool,
    pad_to_aspect_ratio: bool,
    **_: object,
) -> None:
    """Validate the parameters."""
    validate.model_tag(model_tag)
    if model_architecture not in PRETRAINED:
        raise ParameterError(
            f"model_architecture must be a pretrained one, {', '.join(PRETRAINED)}; train the others. "
            f"Received: model_architecture={model_architecture!r}",
            "model_architecture",
        )
    validate.weights("weights", weights)
    validate.sha256("weights_sha256", weights_sha256)
    validate.seed(seed)
    Resizing(
        interpolation=interpolation,
        crop_to_aspect_ratio=crop_to_aspect_ratio,
        pad_to_aspect_ratio=pad_to_aspect_ratio,
    )


def init_model(
    *,
    model: Path,
    model_tag: str,
    model_architecture: str,
    weights: str,
    weights_sha256: str,
    seed: int,
    interpolation: str,
    crop_to_aspect_ratio: bool,
    pad_to_aspect_ratio: bool,
) -> dict[str, Any]:
    """Build, save and register the model. The parameters are those of the step.

    Returns:
        The model's description.
    """
    used: dict[str, Any] = {
        "model_tag": model_tag,
        "model_architecture": model_architecture,
        "weights": weights,
        "weights_sha256": weights_sha256,
        "seed": seed,
        "interpolation": interpolation,
        "crop_to_aspect_ratio": crop_to_aspect_ratio,
        "pad_to_aspect_ratio": pad_to_aspect_ratio,
    }
    check(**used)

    import dataclasses

    from evasion.components.common import seeding, tracking
    from evasion.components.common.models import architectures
    from evasion.components.common.models import artifact as model_artifact

    used["seed"] = seed = seeding.resolve(seed)
    with tracking.stage("init_model", used) as stage_run:
        name = tracking.registered_name(stage_run.experiment, model_tag, model_architecture)
        network = architectures.build_imagenet(model_architecture, weights, weights_sha256, seed)
        card = model_artifact.save(
            network,
            model,
            architecture=model_architecture,
            input_shape=ARCHITECTURES[model_architecture].input_shape,
            class_names=architectures.imagenet_classes(),
            class_names_origin=model_artifact.IMAGENET,
            weights=weights,
            name=name,
            input_range=APPLICATIONS[model_architecture].input_range,
            outputs="logits",
            **Resizing.of(used).to_json(),
        )
        version = ""
        try:
            version = stage_run.log_model(model, register_as=name)
        finally:
            card = dataclasses.replace(card, name=name if version else "", version=version)
            card.write(model)
    return dataclasses.asdict(card)
