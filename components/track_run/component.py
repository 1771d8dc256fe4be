"""The step `track_run`."""

from evasion.components.step import step


@step
def track_run(pipeline: str, status: str) -> None:
    """Open or end the MLflow run of the whole pipeline; `evasion compile` puts this step around the others.

    Without a run that Kubeflow's backend keeps itself, the steps find theirs by the id of Kubeflow's run.

    Args:
        pipeline: The pipeline's name.
        status: RUNNING opens the run, FINISHED ends it, FAILED ends it unless it has finished.
    """
    from evasion.components.track_run import task

    task.track_run(pipeline=pipeline, status=status)
