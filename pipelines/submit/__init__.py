"""The client of Kubeflow Pipelines: reaches a host, uploads a pipeline, follows a run."""

KUBEFLOW = "kubeflow"  # the namespace of Kubeflow Pipelines itself
DASHBOARD, DASHBOARD_PORT = "ml-pipeline-ui", 80
