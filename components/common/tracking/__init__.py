"""MLflow tracking: a run for each stage, nested in the run of its pipeline. No other package imports MLflow.

MLflow's own variables say where runs are stored (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` or `_ID`). The run of
the pipeline is `MLFLOW_RUN_ID`, which the local runner or Kubeflow's backend sets. Otherwise it is the run tagged with
the id of Kubeflow's run (`KFP_RUN_ID`), which the step `track_run` opens and ends. Without either, a stage's run has no
parent. A stage opens its run before it starts work, or while it processes its first images, so that a wrong address
fails at once. It logs results when it has them: if MLflow is no longer available then, the artifacts are kept and the
stage warns that tracking is incomplete.

Tags record the origin of every run: the commit of the steps' code (`mlflow.source.git.commit`), the image
(`mlflow.docker.image.uri`) and Kubeflow's run (`kfp_run_id`), and what shows whether the run can still end by itself
(`evasion.process`). A stage's run also has the dataset that the stage processed (`dataset_sha256`) and the resulting
report (`parent_report`); the run of a comparison has the hashes of its reports, and the runs of these reports have them
as `report_sha256`. A pipeline's run also has its testing data, the commit for which the run was started (`git_commit`)
and Kubeflow's page of the run (`kfp_run_url`).
"""

from evasion.components.common.tracking.client import (
    DEFAULT_EXPERIMENT,
    INCOMPLETE,
    KUBEFLOW_RUN,
    KUBEFLOW_TAG,
    LOST,
    UNREACHABLE,
    LoginError,
    TrackingError,
    connection,
)
from evasion.components.common.tracking.downloads import check_access, download_dataset, download_report
from evasion.components.common.tracking.models import download_model, registered_name
from evasion.components.common.tracking.pipeline_run import (
    end_abandoned,
    end_open_runs,
    end_stages,
    fail_pipeline_run,
    mark_pipeline_run,
    page_of_pipeline_run,
    pipeline_run,
)
from evasion.components.common.tracking.processes import has_ended, this_process
from evasion.components.common.tracking.removal import remove_pipeline_runs
from evasion.components.common.tracking.stage_run import IMAGE, REVISION, Opening, StageRun, stage, stage_meanwhile

__all__ = [
    "DEFAULT_EXPERIMENT",
    "IMAGE",
    "INCOMPLETE",
    "KUBEFLOW_RUN",
    "KUBEFLOW_TAG",
    "LOST",
    "REVISION",
    "UNREACHABLE",
    "LoginError",
    "Opening",
    "StageRun",
    "TrackingError",
    "check_access",
    "connection",
    "download_dataset",
    "download_model",
    "download_report",
    "end_abandoned",
    "end_open_runs",
    "end_stages",
    "fail_pipeline_run",
    "has_ended",
    "mark_pipeline_run",
    "page_of_pipeline_run",
    "pipeline_run",
    "registered_name",
    "remove_pipeline_runs",
    "stage",
    "stage_meanwhile",
    "this_process",
]
