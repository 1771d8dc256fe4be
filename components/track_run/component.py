"""The step `track_run`."""

from kfp.dsl import Markdown, Output

from evasion.components.step import step


@step
def track_run(
    link: Output[Markdown],
    pipeline: str,
    status: str,
    run_name: str = "",
    git_commit: str = "",
    kubeflow_link: str = "",
) -> None:
    """Open or end the MLflow run of the whole pipeline; `evasion compile` puts this step around the others.

    Without a run that Kubeflow's backend keeps itself, the steps find theirs by the id of Kubeflow's run.

    Args:
        link: The way from Kubeflow's dashboard to the run in MLflow.
        pipeline: The pipeline's name.
        status: RUNNING opens the run, FINISHED ends it, FAILED ends it unless it has finished.
        run_name: What the dashboard calls the run; the run in MLflow takes that name. Blank for the pipeline's.
        git_commit: The commit that asks for the run, recorded in MLflow; blank for none.
        kubeflow_link: The dashboard's address as people reach it, for the link in MLflow; blank for none.
    """
    from pathlib import Path

    from evasion.components.track_run import task

    task.track_run(
        link=Path(link.path),
        pipeline=pipeline,
        status=status,
        run_name=run_name,
        git_commit=git_commit,
        kubeflow_link=kubeflow_link,
    )
