"""An MLflow server with PostgreSQL in containers, for the runs of one folder."""

import fcntl
import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evasion.pipelines.local.containers import Engine, EngineError, confinement, give, image, told, user

PATIENCE = 180.0  # seconds to answer; the first start makes the tables
PORT = 5000
HOST = "mlflow"  # the server's name in the containers' network
IMAGES = (image("mlflow"), image("postgres"))


@dataclass(frozen=True)
class Server:
    """An MLflow server that runs.

    Attributes:
        address: Where this machine reaches it.
        inside: Where containers reach it.
        network: The engine's network from which they do.
    """

    address: str
    inside: str
    network: str


def reached_at(uri: str) -> Server:
    """Return the server that somebody else runs at an address.

    Raises:
        EngineError: It is no server's address but a file's or a database's.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        raise EngineError(
            f"With --docker the steps reach MLflow as a server: the tracking URI must begin with http:// or https://. "
            f"Received: {parts.scheme}:... Without one, a server is started for the run."
        )
    # To a container "localhost" is itself, unless it shares this machine's network.
    ours = parts.hostname in ("localhost", "::1") or str(parts.hostname).startswith("127.")
    return Server(uri, uri, "host" if ours else "bridge")


def past_proxies(server: Server) -> dict[str, str]:
    """Return the variables by which containers reach the server itself, not a proxy."""
    hosts = (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), urlsplit(server.inside).hostname)
    excepted = ",".join(host for host in hosts if host)
    return {"NO_PROXY": excepted, "no_proxy": excepted}


@contextmanager
def running(client: Engine, folder: Path) -> Iterator[Server]:
    """Run MLflow's server over PostgreSQL for a block, or share the one that runs for another block.

    The two containers share one network address, as in a pod: PostgreSQL listens there to MLflow alone. The last
    block to end stops them.

    Args:
        client: The container engine.
        folder: Where the database and the artifacts are kept.

    Raises:
        EngineError: One of the two does not start.
    """
    give(folder)
    pair = _Pair(client, folder)
    with (folder / "users").open("w") as users:  # locked by every block that uses the containers
        try:
            with _one_at_a_time(folder):
                server = pair.start()
                fcntl.flock(users, fcntl.LOCK_SH)
            yield server
        finally:
            with _one_at_a_time(folder), suppress(BlockingIOError):  # another block uses them
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                pair.stop()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep others from starting or stopping the containers meanwhile."""
    with (folder / "changes").open("w") as changes:
        fcntl.flock(changes, fcntl.LOCK_EX)
        yield


class _Pair:
    """The containers of one folder."""

    def __init__(self, client: Engine, folder: Path) -> None:
        self._client = client
        self._folder = folder.resolve()
        key = hashlib.sha256(str(self._folder).encode()).hexdigest()[:8]
        self._network = f"evasion-{key}"
        self._postgres = f"evasion-postgres-{key}"
        self._mlflow = f"evasion-mlflow-{key}"

    def start(self) -> Server:
        found = [self._found(name) for name in (self._postgres, self._mlflow)]
        if not all(container and container.status == "running" for container in found):
            self.stop()  # what a killed run has left
            with told("MLflow's server cannot be started"):
                self._start()
        published = self._client.containers.get(self._postgres).ports[f"{PORT}/tcp"][0]
        server = Server(f"http://127.0.0.1:{published['HostPort']}", f"http://{HOST}:{PORT}", self._network)
        self._wait_for(f"{server.address}/health")
        return server

    def _start(self) -> None:
        self._client.networks.create(self._network, driver="bridge")
        # PostgreSQL wants its user to have a name.
        names = self._folder / "passwd"
        names.write_text("mlflow:x:{}:{}::/tmp:/bin/false\n".format(*user()), encoding="utf-8")
        self._run(
            "postgres",
            self._postgres,
            network=self._network,
            networking_config={self._network: self._client.api.create_endpoint_config(aliases=[HOST])},
            tmpfs={"/tmp": ""},  # noqa: S108 - in the container
            ports={f"{PORT}/tcp": ("127.0.0.1", None)},
            volumes=[f"{give(self._folder / 'postgres')}:/var/lib/postgresql/data", f"{names}:/etc/passwd:ro"],
        )
        # It tries again until PostgreSQL answers.
        self._run(
            "mlflow",
            self._mlflow,
            [
                "--backend-store-uri=postgresql+psycopg://mlflow@127.0.0.1/postgres",
                "--artifacts-destination=/artifacts",
                f"--allowed-hosts={HOST}:{PORT},127.0.0.1:*,localhost:*",
                "--workers=1",
            ],
            network_mode=f"container:{self._postgres}",
            # It passes what is uploaded through its temporary folder.
            volumes=[f"{give(self._folder / name)}:/{name}" for name in ("artifacts", "tmp")],
        )

    def _run(self, target: str, name: str, command: list[str] | None = None, **settings: Any) -> None:
        self._client.containers.run(image(target), command, name=name, detach=True, **confinement(), **settings)

    def stop(self) -> None:
        with told("MLflow's server cannot be stopped"):
            for name in (self._mlflow, self._postgres):
                if (container := self._found(name)) is not None:
                    container.stop(timeout=30 if name == self._postgres else 5)
                    container.remove(force=True)
            for network in self._client.networks.list(names=[f"^{self._network}$"]):
                network.remove()

    def _found(self, name: str) -> Any:
        import docker

        try:
            return self._client.containers.get(name)
        except docker.errors.NotFound:
            return None

    def _wait_for(self, url: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not _answers(url):
            for name in (self._postgres, self._mlflow):
                container = self._client.containers.get(name)
                if container.status != "running" or time.monotonic() > deadline:
                    said = container.logs(tail=15).decode(errors="replace").strip()
                    raise EngineError(f"MLflow's server does not start. {name} said last:\n{said}")
            time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        # Past any proxy: the address is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (urllib.error.URLError, OSError):
        return False
