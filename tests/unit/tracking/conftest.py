"""Fixtures that the tests of this folder share."""

import re

import pytest
from runs_in_mlflow import VARIABLES, serving

from evasion.components.common import tracking
from evasion.components.common.tracking.client import connect


@pytest.fixture(autouse=True)
def connection_of_its_own(monkeypatch):
    """What one test has learned of MLflow does not shorten the patience of the next one."""
    monkeypatch.setattr(tracking.connection, "lost", False)


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_mlflow):
    with serving(tmp_path_factory.mktemp("server"), empty_mlflow) as (address, _):
        yield address


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def client(request, tmp_path, monkeypatch):
    """An MLflow, in an experiment of this test alone, with a working directory that must stay as empty as it is."""
    if request.param == "server":
        address = request.getfixturevalue("server")
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        mlflow_client = connect()
    else:
        mlflow_client = request.getfixturevalue("mlflow_store")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{request.param}{re.sub(r'[^a-z_]', '', request.node.originalname)}")
    working_directory = tmp_path / "working_directory"
    working_directory.mkdir()
    monkeypatch.chdir(working_directory)
    yield mlflow_client
    assert list(working_directory.iterdir()) == []  # no ./mlruns
