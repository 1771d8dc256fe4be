"""Download a registered model from MLflow."""

from pathlib import Path
from typing import Any

from evasion.components.common import validate
from evasion.components.common.models.architectures import ARCHITECTURES


def check(*, name: str, model_architecture: str, **_: object) -> None:
    """Validate the parameters."""
    validate.required("model", name, "as name, name/version, name@alias or models:/…")
    validate.one_of("model_architecture", model_architecture, ARCHITECTURES)


def load_model(*, model: Path, name: str, model_architecture: str) -> dict[str, Any]:
    """Download the model. The parameters are those of the step.

    Returns:
        The model's description.
    """
    check(name=name, model_architecture=model_architecture)

    import dataclasses
    import shutil
    import tempfile

    from evasion.components.common import tracking
    from evasion.components.common.files import replacing
    from evasion.components.common.models.artifact import FILE, Card

    with tracking.stage("load_model", {"model": name, "model_architecture": model_architecture}) as stage_run:
        with tempfile.TemporaryDirectory() as temporary:
            folder, registered, version = tracking.download_model(name, Path(temporary))
            card = dataclasses.replace(Card.read(folder), name=registered, version=version)
            card.require_architecture(model_architecture)
            with replacing(model) as target:
                target.mkdir(parents=True)
                shutil.copyfile(folder / FILE, target / FILE)
                card.write(target)
        stage_run.log_parameters({"model_name": registered, "model_version": version, "model_sha256": card.sha256})
    return dataclasses.asdict(card)
