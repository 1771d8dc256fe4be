"""The run of a whole pipeline, on this machine and in Kubeflow."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from evasion.components.common.tracking.client import (
    KUBEFLOW_RUN,
    KUBEFLOW_TAG,
    MOST_RUNS,
    PARENT,
    TrackingError,
    connect,
    current_experiment,
    default_variables,
    reachable,
    surrounding_run,
    tracking_uri,
    without_password,
)
from evasion.components.common.tracking.stage_run import end, ending, lineage_tags, log_run_parameters


@contextmanager
def pipeline_run(name: str, parameters: Mapping[str, Any], *, git_commit: str = "") -> Iterator[str]:
    """Open the run of a whole pipeline and yield its id; it ends FINISHED, FAILED or KILLED.

    Args:
        name: The pipeline's name.
        parameters: The parameters it was called with.
        git_commit: The commit that asks for it, or `""`.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    with reachable():
        client = connect()
        tags = {**lineage_tags(git_commit=git_commit), "stage": "pipeline", "pipeline": name}
        run = client.create_run(current_experiment(client).experiment_id, run_name=name, tags=tags)
        log_run_parameters(client, run.info.run_id, parameters)
    with ending(lambda: run.info.run_id):
        yield str(run.info.run_id)


def mark_pipeline_run(
    name: str, status: str, *, run_name: str = "", git_commit: str = "", kubeflow_page: str = ""
) -> str:
    """Open or finish the run of a pipeline in Kubeflow, which stages find by the id of Kubeflow's run.

    Where Kubeflow's backend keeps a run in MLflow itself, it is left to it.

    Args:
        name: The pipeline's name.
        status: RUNNING or FINISHED.
        run_name: What Kubeflow's dashboard calls the run, or `""`.
        git_commit: The commit that asks for it, or `""`.
        kubeflow_page: Where Kubeflow's dashboard shows it, or `""`.

    Returns:
        The run's id, or `""` where there is none to mark.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    kubeflow_run = os.environ.get(KUBEFLOW_RUN)
    with reachable(lasting=status != "RUNNING"):
        client = connect()
        run = surrounding_run(client)
        if os.environ.get(PARENT) or not kubeflow_run:
            return ""
        if run is None and status == "RUNNING":
            tags = {"stage": "pipeline", "pipeline": name, KUBEFLOW_TAG: kubeflow_run}
            tags |= lineage_tags(kfp_run_name=run_name, git_commit=git_commit, kfp_run_url=kubeflow_page)
            if kubeflow_page:
                # What MLflow shows as the run's description.
                tags["mlflow.note.content"] = f"[{run_name or kubeflow_run}]({kubeflow_page}) in Kubeflow"
            run = client.create_run(current_experiment(client).experiment_id, run_name=run_name or name, tags=tags)
        elif run is not None and status == "RUNNING":
            client.update_run(run.info.run_id, status)
        elif run is not None:
            client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id) if run else ""


def fail_pipeline_run() -> None:
    """End the run of a pipeline in Kubeflow as FAILED, after one of its stages failed.

    Nothing else would: no step of Kubeflow's runs after one that failed, but one whose graph hides the whole pipeline
    behind it. Where a further try of the stage succeeds, the last step finishes the run all the same. What goes wrong
    here is only a warning.
    """
    from mlflow.exceptions import MlflowException

    if os.environ.get(PARENT) or not os.environ.get(KUBEFLOW_RUN):
        return
    try:
        with reachable():
            run = surrounding_run(connect())
    except (TrackingError, MlflowException) as error:
        print(f"warning: the pipeline's run stays open in MLflow: {error}", file=sys.stderr)
        return
    if run is not None and run.info.status == "RUNNING":
        end(run.info.run_id, "FAILED")


def page_of_pipeline_run(address: str) -> str:
    """Return where MLflow shows the pipeline's run, or that which Kubeflow's backend keeps; `""` without one.

    Args:
        address: MLflow's, as people reach it; `""` for the one that the steps use.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    import mlflow

    with reachable(lasting=True):
        run = surrounding_run(connect())
        address = address or without_password(mlflow.get_tracking_uri())
        return f"{address.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" if run else ""


def end_open_runs(kubeflow_run: str, uri: str, status: str) -> int:
    """End what a run in Kubeflow that is over has left open: a pod that is killed ends no run.

    Args:
        kubeflow_run: The run's id in Kubeflow.
        uri: Where MLflow is, seen from here.
        status: FAILED or KILLED.

    Returns:
        How many runs were left open, those of the pipeline and of its stages.

    Raises:
        TrackingError: If MLflow does not answer, or does not let them be ended.
    """
    with tracking_uri(uri), default_variables({"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}), reachable():
        client = connect()
        experiments = [one.experiment_id for one in client.search_experiments()]
        left = f"tags.`kfp_run_id` = '{kubeflow_run}' and attributes.status = 'RUNNING'"
        runs = client.search_runs(experiments, left, max_results=MOST_RUNS) if experiments else []
        for run in runs:
            client.set_terminated(run.info.run_id, status)
    return len(runs)
