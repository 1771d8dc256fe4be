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
    """Open or end the MLflow run of a pipeline. `evasion compile` adds this step before and after the others.

    If Kubeflow's backend does not manage the run itself, the steps look it up by the id of Kubeflow's run.

    Args:
        link: Link from Kubeflow's dashboard to the run in MLflow.
        pipeline: The pipeline's name.
        status: RUNNING opens the run, FINISHED ends it. A stage that fails ends it as FAILED.
        run_name: Name of the run in the dashboard and in MLflow; blank for the pipeline's name.
        git_commit: Commit for which the run is started, recorded in MLflow; blank for none.
        kubeflow_link: Address of the dashboard in a browser, for the link in MLflow; blank for none.
    """
    from evasion.components.body import call

    call("track_run", locals())
