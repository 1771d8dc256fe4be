"""MLflow: one run a stage below one run a pipeline; the only module that imports it.

Where runs go is MLflow's own business (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` or `_ID`). The run of the
pipeline is `MLFLOW_RUN_ID`, which the local runner or Kubeflow's backend sets; where they do not, it is the one that
bears the id of Kubeflow's run (`KFP_RUN_ID`), which the step `track_run` opens and ends. Without either a stage's run
stands alone. A stage opens its run before it works, or while it works on its first images, so that a wrong address
fails at once, and logs results when it has them: if MLflow has gone by then, the artifacts are kept and the stage
says that tracking is incomplete.

Every run bears tags that say where it comes from: the commit of the steps' code (`mlflow.source.git.commit`), the
image (`mlflow.docker.image.uri`), Kubeflow's run (`kfp_run_id`); a stage's, the dataset that it worked on
(`dataset_sha256`) and the report that came of it (`parent_report`; that of a comparison, the hashes of its reports,
which their runs bear as `report_sha256`); a pipeline's, its testing data, the commit that asked for it (`git_commit`)
and Kubeflow's page of the run (`kfp_run_url`).
"""

from evasion.components.common.tracking.client import (
    DEFAULT_EXPERIMENT,
    KUBEFLOW_RUN,
    KUBEFLOW_TAG,
    LoginError,
    TrackingError,
)
from evasion.components.common.tracking.downloads import check_access, download_dataset, download_report
from evasion.components.common.tracking.models import download_model, registered_name
from evasion.components.common.tracking.pipeline_run import (
    end_open_runs,
    fail_pipeline_run,
    mark_pipeline_run,
    page_of_pipeline_run,
    pipeline_run,
)
from evasion.components.common.tracking.stage_run import IMAGE, REVISION, StageRun, stage, stage_meanwhile

__all__ = [
    "DEFAULT_EXPERIMENT",
    "IMAGE",
    "KUBEFLOW_RUN",
    "KUBEFLOW_TAG",
    "REVISION",
    "LoginError",
    "StageRun",
    "TrackingError",
    "check_access",
    "download_dataset",
    "download_model",
    "download_report",
    "end_open_runs",
    "fail_pipeline_run",
    "mark_pipeline_run",
    "page_of_pipeline_run",
    "pipeline_run",
    "registered_name",
    "stage",
    "stage_meanwhile",
]
