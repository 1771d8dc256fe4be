"""Datasets and reports that runs have logged."""

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
    """Fetch a dataset tar that a stage logged.

    Args:
        run_id: The run of the stage, or of the pipeline whose stage it was.
        tar_name: The artifact's name.
        destination: A folder for the file.

    Raises:
        TrackingError: If the run or the artifact is not there, or several stages of the pipeline logged that name.
    """
    from mlflow.exceptions import MlflowException

    with reachable(lasting=True):
        client = connect()
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise  # it did not answer
            raise TrackingError(f"MLflow holds no such run. Received: run_id={run_id!r}") from error
        children = client.search_runs(
            [run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run.info.run_id}'", max_results=MOST_RUNS
        )
        names = {
            one.info.run_id: {file.path for file in client.list_artifacts(one.info.run_id)} for one in (run, *children)
        }
    holders = [one for one, files in names.items() if tar_name in files]
    if len(holders) != 1:
        found = ", ".join(sorted(name for name in set().union(*names.values()) if name.endswith(".tar"))) or "no tar"
        raise TrackingError(
            f"dataset_tar_name must be the name of one artifact of run {run_id}, which holds {found}"
            f"{' (several stages hold that name: give the run id of one)' if len(holders) > 1 else ''}. "
            f"Received: dataset_tar_name={tar_name!r}"
        )
    with default_variables(patience(PATIENT)):
        return Path(client.download_artifacts(holders[0], tar_name, str(destination)))


def download_report(kubeflow_run: str, uri: str, destination: Path) -> list[Path]:
    """Fetch the report of a run in Kubeflow, the page and the numbers.

    Args:
        kubeflow_run: The run's id in Kubeflow.
        uri: Where MLflow is, seen from here.
        destination: A folder; the files appear in it whole.

    Raises:
        TrackingError: If MLflow does not answer, or does not hold the report.
    """
    with tracking_uri(uri), reachable():
        client = connect()
        experiments = [one.experiment_id for one in client.search_experiments()]

        def tagged(name: str, value: str) -> list[Any]:
            return list(client.search_runs(experiments, f"tags.`{name}` = '{value}'", max_results=MOST_RUNS))

        # Where Kubeflow's backend keeps the run, the report lies below the run that it opened for the step.
        held, below = tagged(KUBEFLOW_TAG, kubeflow_run), []
        while held:
            for run in held:
                files = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
                if files >= set(REPORT):
                    with default_variables(patience(PATIENT)), tempfile.TemporaryDirectory(dir=destination) as folder:
                        return [
                            Path(client.download_artifacts(run.info.run_id, name, folder)).replace(
                                destination / Path(name).name
                            )
                            for name in REPORT
                        ]
                below += tagged(PARENT_TAG, run.info.run_id)
            held, below = below, []
    raise TrackingError(
        f"MLflow holds no report of Kubeflow's run {kubeflow_run}: the log of the step `report` says whether tracking "
        "was incomplete."
    )


def check_access(uri: str) -> None:
    """Ask MLflow for its experiments, as whom the environment says.

    Args:
        uri: Where MLflow is.

    Raises:
        LoginError: It does not take the login.
        TrackingError: It does not answer.
    """
    from mlflow.exceptions import MlflowException

    with tracking_uri(uri), reachable():
        try:
            connect().search_experiments(max_results=1)
        except MlflowException as error:
            if error.error_code not in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"):
                raise
            who = os.environ.get("MLFLOW_TRACKING_USERNAME")
            refuses = f"does not take the login of {who}" if who else "asks for a login"
            raise LoginError(
                f"MLflow at {without_password(uri)} {refuses}. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            ) from error
