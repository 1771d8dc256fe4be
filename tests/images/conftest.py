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
    """Runs Python in an image as steps are run; returns what it printed."""

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
    """The server of this module's runs, kept up between them."""
    with server.running(engine, output / "server") as running:
        yield running


@pytest.fixture
def beside(engine, mlflow):
    """Names the containers that run beside the server; other tests have their own server."""
    return lambda: {one.name for one in engine.containers.list(all=True, filters={"network": mlflow.network})}


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
