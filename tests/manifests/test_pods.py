"""MLflow and PostgreSQL as the manifests run them: the same images, users, variables, read-only roots and volumes."""

import contextlib
import io
import json
import random
import socket
import tarfile
import time
from contextlib import ExitStack
from unittest.mock import ANY

import docker
import pods
import pytest
import requests
from mlflow import MlflowClient

from evasion.pipelines.local import containers, server

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),  # the docker library's streams
]


@pytest.fixture(scope="module")
def engine():
    with containers.engine((containers.image("cpu"), *server.IMAGES)) as engine:
        yield engine


@pytest.fixture
def node(engine, tmp_path):
    node = pods.Node(engine, tmp_path)
    yield node
    node.close()


@pytest.fixture
def start(node):
    """Starts a workload and waits until it is ready; all workloads end with the block."""

    class Start(ExitStack):
        def __call__(self, objects, kind, name):
            workload = pods.find(objects, kind, name)
            container = self.enter_context(node.running(objects, workload))
            wait_for(container, pods.containers(workload)[-1]["readinessProbe"])
            return container

    return Start


def wait_for(container, probe):
    deadline = time.monotonic() + 60
    while not ready(container, probe):
        container.reload()
        assert container.status == "running", container.logs().decode()
        assert time.monotonic() < deadline, container.logs().decode()
        time.sleep(0.3)


def ready(container, probe):
    if "exec" in probe:
        return container.exec_run(probe["exec"]["command"]).exit_code == 0
    try:
        return requests.get(address(container) + probe["httpGet"]["path"], timeout=5).ok
    except requests.ConnectionError:
        return False


def address(container):
    container.reload()
    ((published,),) = [bindings for bindings in container.ports.values() if bindings]
    return f"http://127.0.0.1:{published['HostPort']}"


def answer(container, path, user=None, **body):
    """The status and the text of the server's response."""
    url = f"{address(container)}/api/2.0/mlflow/{path}"
    method = "POST" if body else "GET"
    response = requests.request(method, url, auth=user, json=body or None, timeout=30)
    return response.status_code, response.text


EXPERIMENTS = "experiments/search?max_results=10"


def users(objects):
    """Names and passwords of the server's administrator and of the steps."""
    server = pods.environment(objects, pods.containers(pods.find(objects, "Deployment", "mlflow"))[0])
    steps = pods.data(objects, "Secret", "evasion-mlflow")
    return ("admin", server["MLFLOW_AUTH_ADMIN_PASSWORD"]), tuple(steps.values())[::-1]


def log_in(monkeypatch, user):
    for name, value in zip(("USERNAME", "PASSWORD"), user, strict=True):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)


def test_a_new_database_then_a_restart_with_other_passwords(render, render_with, start, monkeypatch, tmp_path):
    objects = render("overlays/local")
    admin, steps = users(objects)
    log_in(monkeypatch, steps)
    with start() as run:
        run(objects, "StatefulSet", "postgres")
        mlflow = run(objects, "Deployment", "mlflow")

        assert answer(mlflow, EXPERIMENTS)[0] == answer(mlflow, EXPERIMENTS, ("admin", "password1234"))[0] == 401
        assert answer(mlflow, EXPERIMENTS, steps)[0] == answer(mlflow, EXPERIMENTS, admin)[0] == 200
        assert answer(mlflow, "users/create", steps, username="other", password="a long password")[0] == 403

        client = MlflowClient(address(mlflow))
        logged = client.create_run(client.create_experiment("evasion"))
        assert logged.info.artifact_uri.startswith("mlflow-artifacts:")
        (tmp_path / "report.json").write_text("{}")
        client.log_artifact(logged.info.run_id, str(tmp_path / "report.json"))
        client.create_registered_model("evasion_le_net")

        # Another user reads, and changes nothing of others; the steps write where somebody else has begun.
        other = ("other", "a long password")
        assert answer(mlflow, "users/create", admin, username=other[0], password=other[1])[0] == 200
        assert answer(mlflow, "registered-models/get?name=evasion_le_net", other)[0] == 200
        version = {"name": "evasion_le_net", "source": logged.info.artifact_uri}
        assert answer(mlflow, "model-versions/create", other, **version)[0] == 403
        experiment = {"experiment_id": logged.info.experiment_id}
        assert answer(mlflow, "runs/create", other, **experiment)[0] == 403
        status, created = answer(mlflow, "experiments/create", other, name="of the other")
        assert status == 200
        assert answer(mlflow, "runs/create", steps, **json.loads(created))[0] == 200

    objects = render_with(
        {
            "PGPASSWORD": "anew",
            "MLFLOW_AUTH_ADMIN_PASSWORD": "the admin's next",
            "MLFLOW_TRACKING_PASSWORD": "the steps' next",
        }
    )
    (_, old_admin), (admin, steps) = admin, users(objects)
    log_in(monkeypatch, steps)
    with start() as run:
        run(objects, "StatefulSet", "postgres")
        mlflow = run(objects, "Deployment", "mlflow")
        assert answer(mlflow, EXPERIMENTS, ("admin", old_admin))[0] == 401
        assert answer(mlflow, EXPERIMENTS, admin)[0] == 200
        client = MlflowClient(address(mlflow))
        assert client.get_registered_model("evasion_le_net")
        kept = client.download_artifacts(logged.info.run_id, "report.json", str(tmp_path))
        assert (tmp_path / kept).read_text() == "{}"


# The tables of MLflow 2.3, with an experiment.
OLD = """
import os
from alembic import command
from mlflow.store.db import utils
from sqlalchemy import text
url = os.environ["MLFLOW_BACKEND_STORE_URI"]
engine = utils.create_sqlalchemy_engine_with_retry(url)
utils.InitialBase.metadata.create_all(engine)
command.upgrade(utils._get_alembic_config(url), "97727af70f4d")
with engine.begin() as connection:
    connection.execute(text("insert into experiments (name, lifecycle_stage) values ('old', 'active')"))
"""
CONNECT = "import psycopg; psycopg.connect('host=postgres dbname=mlflow user={}')"


@pytest.fixture
def database(render, start, node):
    """An empty PostgreSQL; `begin` starts the container that prepares it for MLflow, or other code instead."""
    objects = render("overlays/local")
    deployment = pods.find(objects, "Deployment", "mlflow")
    prepare, _ = pods.containers(deployment)

    class Database:
        def begin(self, code=None, **variables):
            env = [*prepare["env"], *({"name": name, "value": value} for name, value in variables.items())]
            container = {**prepare, "env": env, **({} if code is None else {"command": ["python3", "-c", code]})}
            created = node.create(objects, deployment, container)
            created.start()
            return created

        def end(self, *arguments, **variables):
            """Return its exit status and its log."""
            begun = self.begin(*arguments, **variables)
            return begun.wait(timeout=120)["StatusCode"], begun.logs().decode()

        def ask(self, query):
            command = ["psql", "--username=postgres", "--tuples-only", "--command", query, "mlflow"]
            return self.run(command).split()

        def run(self, command):
            status, output = self.container.exec_run(command)
            assert status == 0, output
            return output.decode()

    with start() as run:
        Database.container = run(objects, "StatefulSet", "postgres")
        yield Database()


def test_an_old_database_is_migrated_by_one_of_two_servers_that_start_together(database):
    assert database.end(OLD)[0] == 0
    assert database.ask("select version_num from alembic_version") == ["97727af70f4d"]
    assert database.ask("select to_regclass('logged_models')") == []
    for begun in [database.begin(), database.begin()]:
        assert begun.wait(timeout=120)["StatusCode"] == 0, begun.logs().decode()
    assert database.ask("select name from experiments") == ["old"]
    assert database.ask("select to_regclass('logged_models')") == ["logged_models"]
    # The README's command for a backup.
    assert "\told\t" in database.run(["pg_dump", "--username", "mlflow", "mlflow"])


def test_a_killed_start_leaves_no_partial_database(render, start, node):
    objects = render("overlays/local")
    workload = pods.find(objects, "StatefulSet", "postgres")
    (declared,) = pods.containers(workload)
    killed = node.create(objects, workload, {**declared, "command": ["sh", "-c", "initdb -D $PGDATA.new > /dev/null"]})
    killed.start()
    assert killed.wait(timeout=60)["StatusCode"] == 0
    with start() as run:
        postgres = run(objects, "StatefulSet", "postgres")
        status, output = postgres.exec_run(["psql", "--username=mlflow", "--list", "mlflow"])
        assert (status, b"mlflow_auth" in output) == (0, True)


def test_the_database_recovers_after_ten_kills(render, start):
    """SIGKILL, as after a lost node or without memory: while it serves, and at random moments of its start."""
    objects = render("overlays/local")
    generator = random.Random(1)
    with start() as run:
        postgres = run(objects, "StatefulSet", "postgres")
        probe = pods.containers(pods.find(objects, "StatefulSet", "postgres"))[-1]["readinessProbe"]

        def ask(query):
            status, output = postgres.exec_run(
                ["psql", "--username=mlflow", "--tuples-only", "--command", query, "mlflow"]
            )
            assert status == 0, output
            return output.decode().split()

        ask("create table kept (number int)")
        for number in range(10):
            ask(f"insert into kept values ({number})")
            postgres.kill()
            if number % 2:
                # Kill it again, during its start.
                postgres.start()
                time.sleep(generator.uniform(0, 1))
                with contextlib.suppress(docker.errors.APIError):  # the container may have ended
                    postgres.kill()
            postgres.wait(timeout=30)
            postgres.start()
            wait_for(postgres, probe)
            assert ask("select count(*) from kept") == [str(number + 1)]


def test_only_one_user_with_the_password_can_use_the_database(database):
    assert database.end(CONNECT.format("mlflow"))[0] == 0
    assert "password authentication failed" in database.end(CONNECT.format("mlflow"), PGPASSWORD="another")[1]
    assert "no pg_hba.conf entry" in database.end(CONNECT.format("postgres"))[1]
    privileged = "select rolname from pg_roles where rolcanlogin and (rolsuper or rolcreatedb or rolcreaterole)"
    assert database.ask(privileged) == ["postgres"]


def send(container, command, sent):
    """Run a command in a container with this standard input; return its exit status and its output."""
    api = container.client.api
    started = api.exec_create(container.id, command, stdin=True)["Id"]
    stream = api.exec_start(started, socket=True)
    with stream, stream._sock as wire:
        wire.sendall(sent)
        wire.shutdown(socket.SHUT_WR)
        output = stream.read().decode(errors="replace")
    return api.exec_inspect(started)["ExitCode"], output


def test_data_is_copied_into_the_claim_for_steps(render, start, node, engine):
    objects = render("overlays/local")

    def receive(files):
        return ["python3", "/etc/evasion/receive.py", "/data", str(files)]

    def packed(files):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o600
                tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    def contents():
        """The contents as another user reads them."""
        show = "import pathlib; [print(path.read_text()) for path in pathlib.Path('/data').rglob('*.png')]"
        bound = {node.volume("evasion-data").name: {"bind": "/data", "mode": "ro"}}
        image = containers.image("cpu")
        return engine.containers.run(image, ["python3", "-c", show], user="1234", volumes=bound, remove=True).split()

    with start() as run:
        helper = run(objects, "Deployment", "evasion-data")
        assert send(helper, receive(2), packed({"mnist/0/a.png": b"first", "mnist/1/b.png": b"second"})) == (0, ANY)
        assert sorted(contents()) == [b"first", b"second"]
        status, output = send(helper, receive(1), packed({"../a": b"out"}))
        assert (status, "Names must lie in the folder" in output) == (1, True)
        # An interrupted transfer changes nothing.
        assert send(helper, receive(1), packed({"mnist/0/a.png": b"third" * 4096})[:9000])[0] == 1
        assert sorted(contents()) == [b"first", b"second"]
        assert send(helper, receive(1), packed({"mnist/0/a.png": b"fourth"})) == (0, ANY)
        assert contents() == [b"fourth"]
