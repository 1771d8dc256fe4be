"""Open and end the MLflow run of a pipeline in Kubeflow, the parent of the steps' runs."""

import os
from pathlib import Path

from evasion.components.common import validate

STATUSES = ("RUNNING", "FINISHED")
MLFLOW_LINK = "EVASION_MLFLOW_LINK"  # MLflow's address in a browser; set by pipelines/placement.py


def check(*, pipeline: str, status: str, **_: object) -> None:
    """Validate the parameters."""
    validate.required("pipeline", pipeline)
    validate.one_of("status", status, STATUSES)


def track_run(*, link: Path, pipeline: str, status: str, run_name: str, git_commit: str, kubeflow_link: str) -> None:
    """Open or end the run. The parameters are those of the step."""
    check(pipeline=pipeline, status=status)

    from evasion.components.common import tracking
    from evasion.components.common.files import replacing

    if status == "RUNNING" and (names := tracking.end_abandoned()):
        print(f"Ended the MLflow runs that killed pods of earlier runs had left open: {', '.join(names)}")
    kubeflow_run = os.environ.get(tracking.KUBEFLOW_RUN, "")
    page = f"{kubeflow_link.rstrip('/')}/#/runs/details/{kubeflow_run}" if kubeflow_link and kubeflow_run else ""
    run_id = tracking.mark_pipeline_run(pipeline, status, run_name=run_name, git_commit=git_commit, kubeflow_page=page)
    if run_id:
        print(f"MLflow run {run_id} of {pipeline}: {status}")
    else:
        print("There is no MLflow run to update: Kubeflow's backend manages it, or none was opened.")
    address = tracking.page_of_pipeline_run(os.environ.get(MLFLOW_LINK, ""))
    with replacing(link) as file:
        file.write_text(f"[The run in MLflow]({address})\n" if address else "No run in MLflow.\n", encoding="utf-8")
