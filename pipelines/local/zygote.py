"""A process that imports what steps need, once, and forks itself for each step.

    python -m evasion.pipelines.local.zygote DESCRIPTOR

Most of a small step's time goes into importing TensorFlow and MLflow; a fork has them already. `ProcessLauncher`
is the other side of the socket DESCRIPTOR. A request is the path of a JSON file (`command`, `environment`) and two
descriptors: one that takes what the step prints, one that takes first its process group and then its exit status.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

# In the order in which the steps of an evaluation need them. A step that is asked for earlier imports the rest itself.
PRELOADED = (
    "kfp.dsl.executor",
    "evasion.components.common.tracking",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "PIL.Image",
    "tensorflow",
    "keras",
    "scipy.stats",
    "mlflow.tensorflow",
    "art.attacks.evasion",
    "art.estimators.classification",
)


def main() -> None:
    """Fork for each request until the socket is closed; a fork returns from here when its step is done."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # lets the system reap the forks
    gc.disable()  # until a fork: a collection would touch, and so copy, all that is shared
    missing = list(PRELOADED)
    while True:
        while missing and not select.select([connection], [], [], 0)[0]:
            with suppress(Exception):  # the step that needs it tells the error
                importlib.import_module(missing.pop(0))
        message, descriptors, *_ = socket.recv_fds(connection, 4096, 2)
        if not message:
            return
        output, status = descriptors
        gc.freeze()
        if os.fork() == 0:
            connection.close()
            _become_step(output, status)
            _run(Path(message.decode()))
            return
        os.close(output)
        os.close(status)


def _become_step(output: int, status: int) -> None:
    """Go on as the process of a step; its parent, which leads the group, stays to tell how it ended."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.write(status, f"{os.getpid()}\n".encode())
    child = os.fork()
    if child:
        os.close(output)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(status, f"{code}\n".encode())
        os._exit(0)
    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(status)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _run(request: Path) -> None:
    """Do what the request asks for, in this interpreter if it is a step that kfp compiled."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    command: list[str] = asked["command"]
    environment: dict[str, str] = asked["environment"]
    if command[:2] != ["sh", "-ec"] or "-m kfp.dsl.executor_main" not in command[2]:
        os.execvpe(command[0], command, environment)  # noqa: S606 - the command is the user's own
    os.environ.clear()
    os.environ.update(environment | {"_KFP_RUNTIME": "true"})
    tempfile.tempdir = None  # the variables say where
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed()  # noqa: NPY002 - or all forks would draw the same
    # What the shell script does that kfp compiles into the command.
    source, *arguments = command[3:]
    module = request.with_name("ephemeral_component.py")
    module.write_text(source, encoding="utf-8")
    sys.argv[1:] = ["--component_module_path", str(module), *arguments]
    runpy.run_module("kfp.dsl.executor_main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
