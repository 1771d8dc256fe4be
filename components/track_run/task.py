"""Open and end the MLflow run of a pipeline in Kubeflow, below which the steps open theirs."""

import os
from pathlib import Path

from evasion.components.common import validate

STATUSES = ("RUNNING", "FINISHED")
MLFLOW_LINK = "EVASION_MLFLOW_LINK"  # MLflow's address as people reach it; set by pipelines/placement.py


def check(*, pipeline: str, status: str, **_: object) -> None:
    """Hold the parameters to their rules."""
    validate.required("pipeline", pipeline)
    validate.one_of("status", status, STATUSES)


def track_run(*, link: Path, pipeline: str, status: str, run_name: str, git_commit: str, kubeflow_link: str) -> None:
    """Mark the run; the parameters are those of the step of this name."""
    check(pipeline=pipeline, status=status)

    from evasion.components.common import tracking
    from evasion.components.common.files import replacing

    kubeflow_run = os.environ.get(tracking.KUBEFLOW_RUN, "")
    page = f"{kubeflow_link.rstrip('/')}/#/runs/details/{kubeflow_run}" if kubeflow_link and kubeflow_run else ""
    marked = tracking.mark_pipeline_run(pipeline, status, run_name=run_name, git_commit=git_commit, kubeflow_page=page)
    if marked:
        print(f"MLflow run {marked} of {pipeline}: {status}")
    else:
        print("This step has no MLflow run to mark: Kubeflow keeps it, or none was opened.")
    address = tracking.page_of_pipeline_run(os.environ.get(MLFLOW_LINK, ""))
    with replacing(link) as file:
        file.write_text(f"[The run in MLflow]({address})\n" if address else "No run in MLflow.\n", encoding="utf-8")
