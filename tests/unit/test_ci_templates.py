"""The templates of `manifests/ci` do what they say: every script of theirs is run, but what installs.

GitHub's compiles, submits to a server that speaks Kubeflow's API, fetches the report from MLflow and gates, all by the
command itself. The others do not compile, which is slow, and a small stand-in records what `evasion submit` is asked
and puts a real report where it would. Comments go to an HTTP server.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kfp_server import KfpServer, Story
from lab import FGM, Lab, Report

from evasion.components.common import tracking

FOLDER = Path(__file__).parents[2] / "manifests" / "ci"
SCHEMA = json.loads(Path(__file__).with_name("data").joinpath("tekton-task.json").read_text())

STAND_IN = f"""#!/usr/bin/env bash
set -euo pipefail
case "$1" in
  submit)
    printf '%s\\n' "$@" > submitted
    env > environment
    if [ "$SUBMIT_CODE" = 0 ]; then mkdir -p evasion; cp "$REPORT" evasion/report.json; fi
    if [ -n "$SUBMIT_CODE" ]; then exit "$SUBMIT_CODE"; fi ;;
  compile) if [ "$COMPILE" != really ]; then exit; fi ;;
esac
exec "{sys.executable}" -c 'from evasion.pipelines.cli.main import main; main(prog_name="evasion")' "$@"
"""
ARGUMENTS = ["--data-dir-test=/data/test set", "--model=signs $(touch injected)", "--model-architecture=le_net"]
SUBMITTED = ["submit", "evaluation", *ARGUMENTS, "--wait", "--timeout", "90m"]
SUBMITTED += ["--terminate-on-interrupt", "--output", "evasion"]


def yaml_of(name: str) -> Any:
    # YAML 1.1 takes the key `on` for true.
    found = yaml.safe_load(FOLDER.joinpath(name).read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


@dataclass
class Ran:
    """How a template went."""

    code: int
    output: str
    ran: list[str] = field(default_factory=list)


class Host(ThreadingHTTPServer):
    """Takes comments."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Comments)
        self.taken: list[tuple[str, Mapping[str, str], bytes]] = []
        self.code = 201

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Comments(BaseHTTPRequestHandler):
    server: Host

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, self.headers, body))
        self.send_response(self.server.code)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A real report: 25 % of the attacked images are right."""
    root = tmp_path_factory.mktemp("report")
    shutil.copyfile(empty_mlflow, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.setenv("EVASION_ARTIFACT_ROOT", str(root / "artifacts"))
        lab = Lab(root / "lab")
        Report(root, [lab.evaluate("clean", wrong=8), lab.evaluate("adv", FGM, wrong=300)])
    return root / "out" / "report.json"


@dataclass
class Project:
    """A working folder of a CI: a gate.toml, and the commands on its PATH."""

    root: Path
    environment: dict[str, str]

    def gate(self, threshold: str) -> None:
        self.root.joinpath("gate.toml").write_text(f'thresholds = ["{threshold}"]\n')

    def submitted(self) -> list[str]:
        return self.root.joinpath("submitted").read_text().splitlines()

    def seen(self, name: str) -> str | None:
        """What `evasion submit` found in its environment."""
        lines = self.root.joinpath("environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line).get(name)

    def bash(self, script: str, *arguments: str, env: Mapping[str, str] | None = None) -> Ran:
        """Run a script as the CI does, which stops at the first error."""
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script, "script", *arguments],
            cwd=self.root,
            env=self.environment | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return Ran(done.returncode, done.stdout)


@pytest.fixture
def project(tmp_path: Path, report: Path) -> Project:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "evasion").write_text(STAND_IN)
    (tools / "evasion").chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    root = tmp_path / "project"
    root.mkdir()
    passed = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    path = f"{tools}:{os.environ['PATH']}"
    return Project(root, {**passed, "PATH": path, "REPORT": str(report), "SUBMIT_CODE": "0", "COMPILE": ""})


# GitHub.

GITHUB = {"inputs.arguments": "\n".join([*ARGUMENTS, "", "  "]), "inputs.timeout": "90m"}
GITHUB |= {"inputs.package": "evasion @ git+https://git.example/e", "inputs.host": "https://kfp.example"}
GITHUB |= {"inputs.tracking-uri": "https://mlflow.example", "secrets.KFP_TOKEN": "a token"}


def github(project: Project, **given: str) -> Ran:
    """Run the steps of the workflow that have a script."""
    found = yaml_of("github.yaml")
    job = found["jobs"]["gate"]
    values = {
        f"inputs.{name}": str(each.get("default", "")) for name, each in found["on"]["workflow_call"]["inputs"].items()
    }
    values |= GITHUB | given

    def resolved(env: Mapping[str, str]) -> dict[str, str]:
        return {name: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values.get(m[1], ""), text) for name, text in env.items()}

    files = {"GITHUB_OUTPUT": project.root / "output", "GITHUB_STEP_SUMMARY": project.root / "summary"}
    went = Ran(0, "")
    for step in job["steps"]:
        name, condition = step.get("name", ""), step.get("if", "")
        exists = [bool(list(project.root.glob(each))) for each in re.findall(r"hashFiles\('(.*?)'\)", condition)]
        if "run" not in step or name == "Install" or (went.code and "always()" not in condition) or not all(exists):
            continue
        env = resolved(job["env"] | step.get("env", {})) | {key: str(file) for key, file in files.items()}
        done = project.bash(step["run"], env=env)
        went.ran.append(name)
        went.output += done.output
        went.code = went.code or done.code
    return went


def test_github_submits_gates_and_tells(
    project: Project, kfp_server: KfpServer, mlflow_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, in a cluster that finds the report below the run that it was asked for."""
    create_run = KfpServer.create_run

    def track(*asked: Any) -> Any:
        status, run = create_run(*asked)
        report = Path(project.environment["REPORT"])
        held = mlflow_store.create_run("0", tags={tracking.KUBEFLOW_TAG: run.run_id})
        for file in (report, report.with_suffix(".html")):
            mlflow_store.log_artifact(held.info.run_id, str(file), "report")
        return status, run

    monkeypatch.setattr(
        KfpServer,
        "ROUTES",
        tuple((route, track if handle is create_run else handle) for route, handle in KfpServer.ROUTES),
    )
    kfp_server.tokens = {"a token"}
    kfp_server.story = Story(per_look=1000)
    project.environment |= {"SUBMIT_CODE": "", "COMPILE": "really"}
    project.gate("robust_accuracy >= 0.5")
    addresses = {"inputs.host": kfp_server.address, "inputs.tracking-uri": os.environ["MLFLOW_TRACKING_URI"]}
    went = github(project, **addresses)
    assert went.code == 1, went.output
    assert went.ran == ["Compile", "Submit and wait", "Gate", "Tell"]
    (run,) = kfp_server.runs.values()
    given = run.model.runtime_config.parameters
    # An input is text, never a command.
    assert given["model"] == "signs $(touch injected)"
    assert not (project.root / "injected").exists()
    assert project.submitted() == SUBMITTED
    assert (project.root / "evasion" / "compiled" / "evaluation_trained.yaml").is_file()
    assert (project.root / "evasion" / "report.json").read_bytes() == Path(project.environment["REPORT"]).read_bytes()
    assert (project.root / "output").read_text() == "outcome=fail\n"
    assert (project.root / "summary").read_text() == (project.root / "evasion" / "gate.md").read_text()
    assert {"gate.xml", "gate.sarif", "gate.json", "gate.md"} < {each.name for each in project.root.glob("evasion/*")}


def test_github_without_a_run_has_nothing_to_tell(project: Project) -> None:
    project.environment["SUBMIT_CODE"] = "4"
    went = github(project)
    assert (went.code, went.ran) == (4, ["Compile", "Submit and wait"])


def test_github_gives_scripts_no_expressions() -> None:
    """What a caller gives reaches a script as a variable alone, and actions are pinned to commits."""
    job = yaml_of("github.yaml")["jobs"]["gate"]
    assert not [step["run"] for step in job["steps"] if "${{" in step.get("run", "")]
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", each) for each in used)
    assert job["permissions"] == {"contents": "read", "pull-requests": "write", "security-events": "write"}


# GitLab.


def gitlab(project: Project, **variables: str) -> Ran:
    job = yaml_of("gitlab.yaml")[".evasion-gate"]
    env = {**job["variables"], "EVASION_TIMEOUT": "90m"}
    env |= {"EVASION_ARGUMENTS": "\n".join(ARGUMENTS) + "\n", **variables}
    # All of `script` runs in one shell, `after_script` in another, whatever became of the first.
    went = project.bash("\n".join(job["script"][1:]), env=env)
    after = project.bash("\n".join(job["after_script"]), env=env)
    return Ran(went.code, went.output + after.output, [str(after.code)])


def test_gitlab_tells_of_a_failure(project: Project, host: Host) -> None:
    project.gate("robust_accuracy >= 0.5")
    variables = {"EVASION_NOTE_TOKEN": "a note's token", "CI_MERGE_REQUEST_IID": "7", "CI_PROJECT_ID": "12"}
    went = gitlab(project, CI_API_V4_URL=f"{host.address}/api/v4", KFP_HOST="https://kfp.example", **variables)
    assert (went.code, went.ran) == (1, ["0"]), went.output
    assert project.submitted() == SUBMITTED
    ((path, headers, body),) = host.taken
    assert path == "/api/v4/projects/12/merge_requests/7/notes"
    assert headers["PRIVATE-TOKEN"] == "a note's token"
    assert json.loads(body) == {"body": (project.root / "evasion" / "gate.md").read_text()}
    reports = yaml_of("gitlab.yaml")[".evasion-gate"]["artifacts"]["reports"]
    assert all((project.root / file).is_file() for file in reports.values())
    assert not (project.root / "injected").exists()


def test_gitlab_passes_without_a_merge_request(project: Project, host: Host) -> None:
    project.gate("robust_accuracy >= 0.2")
    went = gitlab(project, EVASION_ARGUMENTS="", CI_API_V4_URL=host.address)
    assert (went.code, went.ran) == (0, ["0"]), went.output
    assert project.submitted() == [each for each in SUBMITTED if each not in ARGUMENTS]
    assert not host.taken


# Tekton.


def tekton(project: Project, **params: str) -> Ran:
    """Run the steps of the task, as its entrypoint does."""
    task = yaml_of("tekton.yaml")["spec"]
    results = project.root.parent / "results"
    results.mkdir()
    values = {f"params.{each['name']}": each.get("default", "") for each in task["params"]}
    values |= {
        "params.timeout": "90m",
        **{f"params.{key}": text for key, text in params.items()},
    }
    values |= {"workspaces.source.path": str(project.root), "context.taskRun.namespace": "team"}
    values |= {f"results.{each['name']}.path": str(results / each["name"]) for each in task["results"]}
    values |= {"steps.step-gate.exitCode.path": str(results / "exitCode")}

    def resolved(text: str) -> str:
        # What the task does not declare is an error, but what is bash's own.
        return re.sub(r"\$\(((?:params|results|steps|workspaces|context)\..*?)\)", lambda m: values[m[1]], text)

    def variables(env: list[dict[str, Any]]) -> dict[str, str]:
        return {each["name"]: resolved(each.get("value", "a secret")) for each in env if each["name"] != "PATH"}

    common = variables(task["stepTemplate"]["env"])
    assert resolved(task["stepTemplate"]["workingDir"]) == str(project.root)
    went = Ran(0, "")
    for step in task["steps"][1:]:
        arguments = ARGUMENTS if step.get("args") == ["$(params.arguments[*])"] else []
        done = project.bash(resolved(step["script"]), *arguments, env=common | variables(step.get("env", [])))
        went.ran.append(step["name"])
        went.output += done.output
        (results / "exitCode").write_text(str(done.code))
        if done.code and step.get("onError") != "continue":
            return Ran(done.code, went.output, went.ran)
    return went


def results(project: Project) -> dict[str, str]:
    return {file.name: file.read_text() for file in (project.root.parent / "results").iterdir()}


def test_tekton_tells_of_a_failure(project: Project, host: Host) -> None:
    project.gate("robust_accuracy >= 0.5")
    went = tekton(project, **{"comments-url": f"{host.address}/repos/o/n/issues/7/comments"})
    assert (went.code, went.ran) == (1, ["compile", "submit", "gate", "tell"]), went.output
    assert project.submitted() == SUBMITTED
    assert project.seen("KFP_NAMESPACE") == "team"
    found = results(project)
    assert found["outcome"] == "fail"
    assert found["summary"].startswith("Robustness gate: fail: 1 fail")
    # Tekton keeps 4 KiB of results.
    assert sum(map(len, found.values())) < 1024
    ((path, headers, body),) = host.taken
    assert path == "/repos/o/n/issues/7/comments"
    assert headers["Authorization"] == "Bearer a secret"
    assert json.loads(body) == {"body": (project.root / "evasion" / "gate.md").read_text()}


def test_tekton_passes_where_a_comment_is_refused(project: Project, host: Host) -> None:
    host.code = 403
    project.gate("robust_accuracy >= 0.2")
    went = tekton(project, **{"comments-url": host.address})
    assert went.code == 0, went.output
    assert "The comment could not be posted." in went.output
    assert len(host.taken) == 1


def test_tekton_cannot_tell(project: Project) -> None:
    project.gate("robust_accuracy >= 0.25")
    went = tekton(project)
    assert went.code == 2, went.output
    assert results(project)["outcome"] == "cannot tell"


def test_tekton_fails_where_the_gate_is_asked_nonsense(project: Project) -> None:
    project.gate("robust_accuracy")
    went = tekton(project)
    assert went.code == 2
    assert "a threshold must be METRIC" in went.output
    assert set(results(project)) == {"exitCode"}


def test_tekton_takes_the_task() -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(yaml_of("tekton.yaml"))


@pytest.mark.parametrize("template", ["gitlab", "tekton"])
def test_scripts_are_clean_by_shellcheck(template: str, tmp_path: Path) -> None:
    """Actionlint does so for GitHub's."""
    found = yaml_of(f"{template}.yaml")
    if template == "gitlab":
        scripts = found[".evasion-gate"]["script"] + found[".evasion-gate"]["after_script"]
    else:
        scripts = [re.sub(r"\$\((?:results|steps)\..*?\)", "/file", step["script"]) for step in found["spec"]["steps"]]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for script in scripts:
        checked = subprocess.run(
            [shellcheck, "--shell=bash", "-"], input=script, text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stdout
