"""The notebook: committed without outputs, and run from top to bottom, offline."""

import json
from pathlib import Path

import nbformat
import pytest
from mlflow import MlflowClient
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "pipelines" / "demo-fgm-resnet50.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert notebook.metadata.language_info == {"name": "python"}, "the version differs between machines"


def text(cell):
    """The output of a cell."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    for name in ("EVASION_DATA", "KFP_HOST", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EVASION_WEIGHTS", "none")
    monkeypatch.setenv("EVASION_OUTPUT", str(tmp_path / "runs"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()

    printed = "".join(text(cell) for cell in notebook.cells if cell.cell_type == "code")
    stages = ["init_model", "infer", "fgm", "infer", "spatial_smoothing", "jpeg_compression", "gaussian_augmentation"]
    results = [line.partition(":")[0] for line in printed.splitlines() if " of 3 images right, MLflow run " in line]
    assert results == [*stages, "infer"]
    assert "The weights are random." in printed

    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in data for data in shown) == 1
    (table,) = [data["text/markdown"] for data in shown if "text/markdown" in data]
    assert [row.split(" | ")[0].strip("| ") for row in table.splitlines()[2:]] == [
        "clean",
        "attacked",
        "spatial_smoothing",
        "jpeg_compression",
        "gaussian_augmentation",
    ]

    summary, of_mobilenet = sorted((tmp_path / "runs").glob("evaluation-registered-*/report.json"))
    own = json.loads(of_mobilenet.read_text())["model"]
    assert (own["architecture"], own["input_range"], own["class_names_origin"]) == ("my_mobilenet", "-1,1", "imagenet")
    table = json.loads(summary.read_text())["table"]
    assert {row["judged"]["robust_accuracy"]["n"] for row in table} == {3}
    assert summary.with_name("report.html").stat().st_size > 10_000
    tracked = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    runs = tracked.search_runs([tracked.get_experiment_by_name("demo").experiment_id], "tags.stage = 'pipeline'")
    assert [run.info.status for run in runs] == ["FINISHED"] * (len(stages) + 3)
