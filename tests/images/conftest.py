"""The container engine and the images that `make image` has built."""

import json

import pytest

from evasion.pipelines.local import containers, runner, server


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "images":
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.slow)
            # The docker library leaves the sockets of streams to the garbage collector.
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(scope="session")
def engine():
    with containers.engine((containers.image("cpu"), *server.IMAGES)) as engine:
        yield engine


@pytest.fixture(scope="session")
def python(engine):
    """Runs Python in an image with the settings of steps; returns its output."""

    def python(code, target="cpu", **settings):
        image = containers.image(target)
        command = ["-c", code]
        return engine.containers.run(
            image, command, entrypoint=["python3"], remove=True, stderr=True, **containers.confinement(), **settings
        ).decode()

    return python


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def mlflow(engine, output):
    """The MLflow server shared by the runs of this module."""
    with server.running(engine, output / "server") as running:
        yield running


@pytest.fixture
def beside(engine, mlflow):
    """Returns the names of the containers in the server's network; other tests have their own server."""
    network = {"network": mlflow.network}
    return lambda: {container.name for container in engine.containers.list(all=True, filters=network)}


@pytest.fixture(scope="module")
def run(output, mlflow):
    """Runs a pipeline in containers."""

    def run(pipeline, **arguments):
        return runner.run(pipeline, arguments, output=output, docker=True)

    return run


@pytest.fixture(scope="session")
def table():
    """The numbers of a report."""
    return lambda result: json.loads(result.summary.read_text())["table"]
