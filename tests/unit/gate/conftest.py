"""Fixtures that the tests of this folder share."""

import shutil
from pathlib import Path

import pytest
from gating import make

from evasion.components.common.results.report import Report as ReportFile
from evasion.components.common.results.report import read


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> dict[str, Path]:
    """Real reports, made once; tests that change one copy it."""
    root = tmp_path_factory.mktemp("reports")
    shutil.copyfile(empty_mlflow, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("EVASION_ARTIFACT_ROOT", str(root / "artifacts"))
        names = "usual worse few oblivious untrained attacks no_clean_median single_step small strong"
        return {name: make(root, name) for name in names.split()}


@pytest.fixture(scope="session")
def usual(reports: dict[str, Path]) -> ReportFile:
    return read(reports["usual"])
