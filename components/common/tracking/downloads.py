"""Downloads datasets and reports that runs have logged."""

import os
import tempfile
from pathlib import Path
from typing import Any

from evasion.components.common.tracking.client import (
    KUBEFLOW_TAG,
    MOST_RUNS,
    PARENT_TAG,
    PATIENT,
    LoginError,
    TrackingError,
    connect,
    default_variables,
    patience,
    reachable,
    tracking_uri,
    without_password,
)

REPORT = ("report/report.html", "report/report.json")


def download_dataset(run_id: str, tar_name: str, destination: Path) -> Path:
    """Download a dataset tar that a stage logged.

    Args:
        run_id: The run of the stage or of its pipeline.
        tar_name: The artifact's name.
        destination: The folder for the file.

    Raises:
        TrackingError: If the run or the artifact does not exist, or several stages of the pipeline logged this name.
    """
    from mlflow.exceptions import MlflowException

    with reachable(lasting=True):
        client = connect()
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise  # MLflow did not answer
            raise TrackingError(f"MLflow has no such run. Received: run_id={run_id!r}") from error
        children = client.search_runs(
            [run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run.info.run_id}'", max_results=MOST_RUNS
        )
        identifiers = [run.info.run_id, *(child.info.run_id for child in children)]
        artifacts = {
            identifier: {file.path for file in client.list_artifacts(identifier)} for identifier in identifiers
        }
    holders = [identifier for identifier, names in artifacts.items() if tar_name in names]
    if len(holders) != 1:
        tars = ", ".join(sorted(name for name in set().union(*artifacts.values()) if name.endswith(".tar"))) or "no tar"
        raise TrackingError(
            f"dataset_tar_name must be the name of one artifact of run {run_id}, which has {tars}"
            f"{' (several stages logged this name: give the run id of one stage)' if len(holders) > 1 else ''}. "
            f"Received: dataset_tar_name={tar_name!r}"
        )
    with default_variables(patience(PATIENT)):
        return Path(client.download_artifacts(holders[0], tar_name, str(destination)))


def download_report(kubeflow_run: str, uri: str, destination: Path) -> list[Path]:
    """Download the report of a run in Kubeflow, `report.html` and `report.json`.

    Args:
        kubeflow_run: The run's id in Kubeflow.
        uri: MLflow's address as seen from this machine.
        destination: The folder for the files, which appear in it when they are complete.

    Raises:
        TrackingError: If MLflow does not answer, or does not have the report.
    """
    with tracking_uri(uri), reachable():
        client = connect()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]

        def tagged(name: str, value: str) -> list[Any]:
            return list(client.search_runs(experiments, f"tags.`{name}` = '{value}'", max_results=MOST_RUNS))

        # If Kubeflow's backend manages the run, the report belongs to a child of the run that it opened for the step.
        runs, children = tagged(KUBEFLOW_TAG, kubeflow_run), []
        while runs:
            for run in runs:
                files = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
                if files >= set(REPORT):
                    with default_variables(patience(PATIENT)), tempfile.TemporaryDirectory(dir=destination) as folder:
                        return [
                            Path(client.download_artifacts(run.info.run_id, name, folder)).replace(
                                destination / Path(name).name
                            )
                            for name in REPORT
                        ]
                children += tagged(PARENT_TAG, run.info.run_id)
            runs, children = children, []
    raise TrackingError(
        f"MLflow has no report of Kubeflow's run {kubeflow_run}. Check the log of the step `report` for a warning that "
        "tracking is incomplete."
    )


def check_access(uri: str) -> None:
    """Request MLflow's experiments with the credentials of the environment.

    Args:
        uri: MLflow's address.

    Raises:
        LoginError: If MLflow rejects the login.
        TrackingError: If MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with tracking_uri(uri), reachable():
        try:
            connect().search_experiments(max_results=1)
        except MlflowException as error:
            if error.error_code not in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"):
                raise
            user = os.environ.get("MLFLOW_TRACKING_USERNAME")
            problem = f"rejects the login of {user}" if user else "requires a login"
            raise LoginError(
                f"MLflow at {without_password(uri)} {problem}. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            ) from error
