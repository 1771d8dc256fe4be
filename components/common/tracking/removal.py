"""Removes runs from MLflow with their artifacts."""

from collections.abc import Collection
from typing import Any, cast

from evasion.components.common.tracking.client import (
    MOST_RUNS,
    PARENT_TAG,
    connect,
    reachable,
    tracking_uri,
)


def remove_pipeline_runs(run_ids: Collection[str], uri: str) -> list[str]:
    """Remove runs of pipelines and of their stages, with their artifacts and the models that are not registered.

    A server keeps the entries as deleted, until `mlflow gc` is run on it; artifacts are removed at once.

    Args:
        run_ids: The runs of the pipelines. Those that MLflow does not have are left out.
        uri: MLflow's tracking URI.

    Returns:
        The registered models that stay, as `name/version`.

    Raises:
        TrackingError: If MLflow does not answer, or does not permit it.
    """
    with tracking_uri(uri), reachable():
        client = connect()
        runs = _with_stages(client, run_ids)
        registered = _registered(client, {run.info.run_id for run in runs})
        models = _unregistered_models(client, runs, {version.source for version in registered})
        for model in models:
            _remove_artifacts(model.artifact_location)
            client.delete_logged_model(model.model_id)
        for run in runs:
            _remove_artifacts(run.info.artifact_uri)
            client.delete_run(run.info.run_id)
        _remove_entries([run.info.run_id for run in runs], [model.model_id for model in models])
    return sorted(f"{version.name}/{version.version}" for version in registered)


def _with_stages(client: Any, run_ids: Collection[str]) -> list[Any]:
    """Return runs and the runs of their stages."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs: list[Any] = []
    for run_id in run_ids if experiments else ():
        for query in (f"attributes.run_id = '{run_id}'", f"tags.`{PARENT_TAG}` = '{run_id}'"):
            runs += client.search_runs(experiments, query, max_results=MOST_RUNS)
    return runs


def _registered(client: Any, run_ids: Collection[str]) -> list[Any]:
    """Return the versions of registered models that these runs have made."""
    return [version for run_id in run_ids for version in client.search_model_versions(f"run_id = '{run_id}'")]


def _unregistered_models(client: Any, runs: Collection[Any], registered: Collection[str]) -> list[Any]:
    """Return the models of these runs that are not a version of a registered model."""
    experiments = sorted({run.info.experiment_id for run in runs})
    run_ids = {run.info.run_id for run in runs}
    models, token = [], None
    while experiments:
        page = client.search_logged_models(experiments, page_token=token)
        models += [model for model in page if model.source_run_id in run_ids]
        token = page.token
        if not token:
            break
    return [model for model in models if not {f"models:/{model.model_id}", model.artifact_location} & set(registered)]


def _remove_artifacts(uri: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository: Any = get_artifact_repository(uri)
    repository.delete_artifacts()


def _remove_entries(run_ids: Collection[str], models: Collection[str]) -> None:
    """Remove deleted runs and models from the database, if this process has access to it.

    `mlflow gc` does the same, but also removes all experiments that somebody has deleted and may want back.
    """
    from mlflow.tracking._tracking_service import utils

    store = cast("Any", utils)._get_store()
    if hasattr(store, "_hard_delete_run"):
        for run_id in run_ids:
            store._hard_delete_run(run_id)
        for model in models:
            store._hard_delete_logged_model(model)
