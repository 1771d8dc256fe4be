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
        status: RUNNING opens the run, FINISHED ends it. A stage that fails ends it as FAILED.
        run_name: What the dashboard calls the run; the run in MLflow takes that name. Blank for the pipeline's.
        git_commit: The commit that asks for the run, recorded in MLflow; blank for none.
        kubeflow_link: The dashboard's address as people reach it, for the link in MLflow; blank for none.
    """
    from evasion.components.body import call

    call("track_run", locals())
