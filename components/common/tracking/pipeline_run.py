"""The MLflow run of a pipeline, on this machine and in Kubeflow."""

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
    PARENT_TAG,
    TrackingError,
    answered,
    connect,
    connection,
    current_experiment,
    default_variables,
    failures,
    reachable,
    surrounding_run,
    tracking_uri,
    without_password,
)
from evasion.components.common.tracking.processes import PROCESS, has_ended, this_process
from evasion.components.common.tracking.signals import signals_held
from evasion.components.common.tracking.stage_run import (
    StageRun,
    create_run,
    end,
    ended,
    lineage_tags,
)


@contextmanager
def pipeline_run(name: str, parameters: Mapping[str, Any], *, git_commit: str = "") -> Iterator[str]:
    """Open the run of a pipeline and yield its id. It ends FINISHED, FAILED or KILLED.

    Args:
        name: The pipeline's name.
        parameters: The pipeline's parameters.
        git_commit: The commit for which the run is started, or `""`.

    Raises:
        TrackingError: If MLflow does not answer.
    """

    def opened() -> StageRun:
        with reachable():
            client = connect()
            tags = {
                **lineage_tags(git_commit=git_commit),
                "stage": "pipeline",
                "pipeline": name,
                PROCESS: this_process(),
            }
            experiment = current_experiment(client)
            return StageRun(create_run(client, experiment, name, tags, parameters), experiment.name)

    with ended(opened) as run:
        yield run.run_id


def end_stages(run_id: str, status: str = "FAILED") -> int:
    """End the runs of stages that a pipeline's run on this machine has left open: those of killed processes.

    Returns:
        Their number. An error is only a warning.
    """

    def end_all() -> int:
        client = connect()
        return _end_stages(client, client.get_run(run_id), status)

    try:
        with signals_held():
            return answered(end_all)
    except failures() as error:
        connection.warn(f"runs of stages stay open in MLflow: {error}")
        return 0


def _end_stages(client: Any, run: Any, status: str) -> int:
    query = f"tags.`{PARENT_TAG}` = '{run.info.run_id}' and attributes.status = 'RUNNING'"
    stages = client.search_runs([run.info.experiment_id], query, max_results=MOST_RUNS)
    for stage in stages:
        client.set_terminated(stage.info.run_id, status)
    return len(stages)


def end_abandoned() -> list[str]:
    """End runs as KILLED that nothing else will end.

    Such are the runs of pipelines, and of their stages, whose process on this machine was killed; in Kubeflow those of
    a workflow of this namespace that has ended.

    Returns:
        The names of the pipelines, and in Kubeflow of the stages.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with reachable():
        client = connect()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`{PROCESS}` LIKE '{{%' and attributes.status = 'RUNNING'"
        runs = client.search_runs(experiments, query, max_results=MOST_RUNS) if experiments else []
        processes = {run.data.tags[PROCESS] for run in runs}
        gone = {process for process in processes if has_ended(process)}
        names = []
        for run in runs:
            if run.data.tags[PROCESS] not in gone:
                continue
            try:
                _end_stages(client, run, "KILLED")
                client.set_terminated(run.info.run_id, "KILLED")
            except MlflowException as error:  # such as that of another user: no reason to refuse a new run
                connection.warn(f"run {run.info.run_id} of a killed process stays open in MLflow: {error}")
            else:
                names.append(str(run.data.tags.get("pipeline", run.info.run_name)))
    return names


def mark_pipeline_run(
    name: str, status: str, *, run_name: str = "", git_commit: str = "", kubeflow_page: str = ""
) -> str:
    """Open or finish the run of a pipeline in Kubeflow. Stages look it up by the id of Kubeflow's run.

    If Kubeflow's backend manages the run in MLflow itself, nothing is done.

    Args:
        name: The pipeline's name.
        status: RUNNING or FINISHED.
        run_name: The run's name in Kubeflow's dashboard, or `""`.
        git_commit: The commit for which the run is started, or `""`.
        kubeflow_page: The run's page in Kubeflow's dashboard, or `""`.

    Returns:
        The run's id, or `""` if there is no run to open or finish.

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
                # MLflow shows this tag as the run's description.
                tags["mlflow.note.content"] = f"[{run_name or kubeflow_run}]({kubeflow_page}) in Kubeflow"
            run = client.create_run(current_experiment(client).experiment_id, run_name=run_name or name, tags=tags)
        elif run is not None and status == "RUNNING":
            client.update_run(run.info.run_id, status)
        elif run is not None:
            _end_stages(client, run, "FAILED")  # what the killed pods of earlier tries have left
            client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id) if run else ""


def fail_pipeline_run(status: str = "FAILED") -> None:
    """End the run of a pipeline in Kubeflow after one of its stages failed, or was terminated (`status` KILLED).

    Nothing else would end it before the next pipeline: Kubeflow runs no step after a failed one, except an exit
    handler, which would hide the pipeline in a graph of its own. If a later attempt of the stage succeeds, the last
    step finishes the run. Errors here are only warnings.
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
        end(run.info.run_id, status)


def page_of_pipeline_run(address: str) -> str:
    """Return the address of MLflow's page of the pipeline's run; `""` without a run.

    If Kubeflow's backend manages the run, it is the page of the run that the backend opened.

    Args:
        address: MLflow's address in a browser; `""` for the address that the steps use.

    Raises:
        TrackingError: If MLflow does not answer.
    """
    import mlflow

    with reachable(lasting=True):
        run = surrounding_run(connect())
        address = address or without_password(mlflow.get_tracking_uri())
        return f"{address.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" if run else ""


def end_open_runs(kubeflow_run: str, uri: str, status: str) -> int:
    """End the MLflow runs that a finished run in Kubeflow has left open, since a killed pod does not end its run.

    Args:
        kubeflow_run: The run's id in Kubeflow.
        uri: MLflow's address as seen from this machine.
        status: FAILED or KILLED.

    Returns:
        The number of runs that were open, of the pipeline and of its stages.

    Raises:
        TrackingError: If MLflow does not answer, or does not permit ending them.
    """
    with tracking_uri(uri), default_variables({"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}), reachable():
        client = connect()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`kfp_run_id` = '{kubeflow_run}' and attributes.status = 'RUNNING'"
        runs = client.search_runs(experiments, query, max_results=MOST_RUNS) if experiments else []
        for run in runs:
            client.set_terminated(run.info.run_id, status)
    return len(runs)
