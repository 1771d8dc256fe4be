"""A process that imports the modules of steps once, and forks itself for each step.

    python -m evasion.pipelines.local.zygote DESCRIPTOR

A small step spends most of its time importing TensorFlow and MLflow; a fork has them already. `ProcessLauncher` is the
other end of the socket DESCRIPTOR. A request consists of the path of a JSON file (`command`, `environment`) and two
descriptors: one for the output of the step, one for its process group followed by its exit status.
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

# In the order in which the steps of an evaluation need them. A step that starts earlier imports the rest itself.
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
    """Fork for each request until the socket is closed; a fork returns when its step has ended."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps the forks
    gc.disable()  # until a fork: a collection would write to, and so copy, all shared memory
    missing = list(PRELOADED)
    steps: list[int] = []
    while True:
        while missing and not select.select([connection], [], [], 0)[0]:
            with suppress(Exception):  # the step that needs the module reports the error
                importlib.import_module(missing.pop(0))
        message, descriptors, *_ = socket.recv_fds(connection, 4096, 2)
        if not message:
            _terminate(steps)
            return
        output, status = descriptors
        gc.freeze()
        steps = [*filter(_runs, steps), os.fork()]
        if steps[-1] == 0:
            connection.close()
            _become_step(output, status)
            _run(Path(message.decode()))
            return
        os.close(output)
        os.close(status)


def _runs(process: int) -> bool:
    """Return whether the leader of a step's group still runs; its id may belong to another process later."""
    return Path(f"/proc/{process}").exists() or not Path("/proc/self").exists()


def _terminate(groups: list[int]) -> None:
    """End steps that still run: the process that waited for them was killed, and nobody wants their results."""
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGTERM)


def _become_step(output: int, status: int) -> None:
    """Continue as the process of a step; its parent, the leader of the group, reports its exit status."""
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
    """Run the command of a request, in this interpreter if it is a step that kfp compiled."""
    content = json.loads(request.read_text(encoding="utf-8"))
    command: list[str] = content["command"]
    environment: dict[str, str] = content["environment"]
    if command[:2] != ["sh", "-ec"] or "-m kfp.dsl.executor_main" not in command[2]:
        os.execvpe(command[0], command, environment)  # noqa: S606 - the command is the user's own
    os.environ.clear()
    os.environ.update(environment | {"_KFP_RUNTIME": "true"})
    tempfile.tempdir = None  # to be read from the new environment
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed()  # noqa: NPY002 - otherwise all forks would draw the same numbers
    # The equivalent of the shell script that kfp compiles into the command.
    source, *arguments = command[3:]
    module = request.with_name("ephemeral_component.py")
    module.write_text(source, encoding="utf-8")
    sys.argv[1:] = ["--component_module_path", str(module), *arguments]
    runpy.run_module("kfp.dsl.executor_main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
