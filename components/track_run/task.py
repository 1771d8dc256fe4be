"""Open and end the MLflow run of a pipeline in Kubeflow, below which the steps open theirs."""

from evasion.components.common import checks

STATUSES = ("RUNNING", "FINISHED", "FAILED")


def check(*, pipeline: str, status: str, **_: object) -> None:
    """Hold the parameters to their rules."""
    checks.required("pipeline", pipeline)
    checks.one_of("status", status, STATUSES)


def track_run(*, pipeline: str, status: str) -> None:
    """Mark the run; the parameters are those of the step of this name."""
    check(pipeline=pipeline, status=status)

    from evasion.components.common import tracking

    if run_id := tracking.mark_pipeline_run(pipeline, status):
        print(f"MLflow run {run_id} of {pipeline}: {status}")
    else:
        print("This step has no MLflow run to mark: Kubeflow keeps it, or none was opened.")
