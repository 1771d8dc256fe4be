"""A client for Kubeflow Pipelines: connects to a host, uploads a pipeline, follows a run."""

KUBEFLOW = "kubeflow"  # the namespace of Kubeflow Pipelines itself
DASHBOARD, DASHBOARD_PORT = "ml-pipeline-ui", 80
