"""What the tests of this folder share."""

import base64
import json

from kfp import dsl

from evasion.components.step import step


@step
def measure(rounds: int) -> int:
    return rounds


@step
def judge(measured: int, strict: bool = True):
    pass


@dsl.pipeline(name="measuring")
def measuring(rounds: int, strict: bool = True):
    """Measure and judge.

    Args:
        rounds: How often.
        strict: Whether to be.
    """
    judge(measured=measure(rounds=rounds).output, strict=strict)


def only(objects):
    (value,) = objects.values()
    return value


KUBECTL = """#!{python}
import json, pathlib, socket, sys, threading
here = pathlib.Path(__file__).parent
if sys.argv[1] == "get":
    kind = sys.argv[2]
    open(here / "got", "a").write(" ".join(sys.argv[2:]) + "\\n")
    if not (here / (kind + ".json")).exists():
        sys.exit("error: " + kind + " is forbidden")
    print((here / (kind + ".json")).read_text())
    sys.exit()
assert sys.argv[1] == "port-forward"
open("{asked}", "a").write(" ".join(sys.argv[2:]) + "\\n")
local, remote = sys.argv[7].split(":")
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(local or 0)))
server.listen()
print(f"Forwarding from 127.0.0.1:{{server.getsockname()[1]}} -> 3000", flush=True)
print(f"Forwarding from [::1]:{{server.getsockname()[1]}} -> 3000", flush=True)
def carry(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for end in (one, other):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
for _ in range({connections}):
    here, _ = server.accept()
    there = socket.create_connection(("127.0.0.1", {mlflow} if sys.argv[6] == "service/mlflow" else {port}))
    for pair in ((here, there), (there, here)):
        threading.Thread(target=carry, args=pair).start()
server.close()
"""


def secret(username, password):
    """kubectl's output for a Secret."""
    values = {"MLFLOW_TRACKING_USERNAME": username, "MLFLOW_TRACKING_PASSWORD": password}
    return json.dumps({"data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}})
