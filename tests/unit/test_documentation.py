"""The documentation works: every command is run or parsed, every link resolves, every quoted error exists.

Commands of `evasion` run for real in an empty folder, as far as they get without minutes of work: `run` validates all
arguments and stops where MLflow should answer, `submit` follows a run on a server that implements Kubeflow's API, the
other commands run to their end. `make`, `pip` and the rest are parsed by the program itself. `COMPLETE` names the tests
that run a command to its end. A command of an unknown kind fails.
"""

import ast
import gc
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from lab import Lab, Report
from markdown_it import MarkdownIt

from evasion.pipelines.submit import watch

# The docker library leaves a socket open that it could not connect; `gc.collect` closes it in the test that opened it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
# tests/manifests/test_walkthrough.py runs the commands of manifests/README.md.
LINKED = [README, *PAGES, *map(ROOT.joinpath, ("CONTRIBUTING.md", "CHANGELOG.md", "images/README.md"))]
LINKED += [ROOT / "manifests/README.md", ROOT / "manifests/ci/README.md"]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NOT_SHELL = {"", "mermaid", "python", "text", "toml"}
MADE = r"bit_depth|momentum|^comparison/|^\.github/"
CLOSED = "http://127.0.0.1:9"  # an address at which nothing answers

# Tests that run a command to its end: the beginning of the command, the file, the test, words of the command in it.
COMPLETE = [
    ("make demo", ".ci/run", "", ("make demo",)),
    ("make image", ".ci/run", "", ("make image",)),
    ("evasion compile all", "tests/unit/test_cli.py", "test_compile_writes_whole_yamls", ("compile", "all")),
    ("evasion list", "tests/unit/test_cli.py", "test_all_pipelines_are_listed", ("list",)),
    (
        "evasion run evaluation --data-dir-train",
        "tests/unit/test_contributing.py",
        "test_the_new_steps_work_in_an_evaluation",
        ("run", "evaluation", "--data-dir-train", "--data-dir-test", "--model-architecture", "le_net", "--epochs"),
    ),
    (
        "evasion run evaluation --docker",
        "tests/images/test_runs.py",
        "test_the_command",
        ("run", "--docker", "--model-architecture", "le_net"),
    ),
    ("evasion mlflow", "tests/images/test_runs.py", "test_mlflows_data_outlives_its_containers", ("server.running",)),
    (
        "evasion submit evaluation --port-forward",
        "tests/unit/submit/test_submit_credentials.py",
        "test_the_host_is_reached_through_kubectl",
        ("--port-forward",),
    ),
]


def parsed(page):
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def commands_of(page):
    """Return the words of every command of a page, without prompts, and lines that go on joined."""
    found = []
    for token in parsed(page):
        if token.type != "fence" or token.info.strip() in NOT_SHELL:
            continue
        assert token.info == "console", f"{page.name}: shell commands belong into blocks of `console`, not {token.info}"
        lines = re.sub(r"\\\n\s*", "", token.content).splitlines()
        assert all(line.startswith("$ ") for line in lines), f"{page.name}: a line is no command: {lines}"
        found += [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return found


COMMANDS = [(page, command) for page in (README, *PAGES) for command in commands_of(page)]


def name_of(value):
    return value.name if isinstance(value, Path) else shlex.join(value)


def evasion(*words):
    """Run the command that pyproject.toml installs; returns its exit code and all that it printed."""
    command = EntryPoint("evasion", PROJECT["scripts"]["evasion"], "console_scripts").load()
    result = CliRunner().invoke(command, list(map(str, words)), prog_name="evasion")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def option(words, name):
    return words[words.index(name) + 1] if name in words else None


class Checks:
    """A check for each kind of command; `page` is where it stands, and the current folder is empty."""

    def __init__(self, request, page):
        self.request, self.page = request, page
        self.patch = request.getfixturevalue("monkeypatch")
        self.folder = request.getfixturevalue("tmp_path")

    def check(self, words):
        kind = {"evasion": f"evasion_{words[1]}", "pip": f"pip_{words[1]}"}.get(words[0], words[0])
        found = getattr(self, kind, None)
        assert found, f"{self.page.name} has a command of a kind that no test knows: {shlex.join(words)}"
        found(words[1:])

    def evasion_list(self, words):
        code, output = evasion(*words)
        assert code == 0, output

    def evasion_run(self, words):
        """Validate the arguments as for a run, which ends where it asks MLflow or the container engine."""
        for name, value in itertools.pairwise(words):
            if name.startswith("--data-dir"):
                (Path(value) / "class").mkdir(parents=True, exist_ok=True)
            elif name == "--weights" or (name == "--model" and value.endswith((".keras", ".h5"))):
                Path(value).parent.mkdir(parents=True, exist_ok=True)
                Path(value).touch()
        self.patch.setenv("MLFLOW_TRACKING_URI", CLOSED)
        self.patch.setenv("DOCKER_HOST", "unix:///nosuch.sock")
        code, output = evasion(*words)
        if "--help" in words:
            assert code == 0, output
        elif "--docker" in words:
            gc.collect()
            assert (code, "unix:///nosuch.sock" in output) == (1, True), output
        else:
            assert (code, f"Error: MLflow at {CLOSED}" in output) == (1, True), output

    def evasion_runs(self, words):
        names = words[2:] if "remove" in words else []
        for name in names:
            Path("runs", name).mkdir(parents=True)
            Path("runs", name, "log.txt").touch()
        code, output = evasion(*words, *(["--yes"] if names else []))
        assert code == 0, output
        assert not any(Path("runs", name).exists() for name in names)

    def evasion_submit(self, words):
        """Submit to a server that implements Kubeflow's API, and follow the run to its end."""
        self.patch.setattr(watch, "INTERVAL", 0.01)
        server = self.request.getfixturevalue("kfp_server")
        self.request.getfixturevalue("mlflow_store")  # for --output
        reached = [word for word in words if word not in ("--port-forward", "--host", option(words, "--host"))]
        assert len(reached) < len(words), "a command of `evasion submit` has to say where Kubeflow is"
        code, output = evasion(*reached, "--host", server.address)
        if "--output" in words:  # the steps have not run, so there is no report
            assert (code, "report of Kubeflow's run" in output) == (5, True), output
        else:
            assert code == 0, output
        assert server.recurring if "--cron" in words else server.runs
        image = option(words, "--image")
        assert image is None or image in yaml.safe_dump_all(one.pipeline_spec for one in server.versions.values())

    def evasion_compile(self, words):
        words = ["infer" if word == "all" else word for word in words]  # all take half a minute
        code, output = evasion(*words)
        assert code == 0, output
        compiled = [*Path(option(words, "--output") or "compiled").glob("*.yaml")]
        assert compiled
        assert all(
            value in file.read_text()
            for file in compiled
            for name, value in itertools.pairwise(words)
            if name == "--image"
        )

    def evasion_compare(self, words):
        for place, folder in enumerate(word for word in words if word.startswith("runs/")):
            self.report(folder, sha256=str(place) * 64, name=Path(folder).name)
        code, output = evasion(*words)
        assert code == 0, output

    def evasion_gate(self, words):
        self.report(words[1])
        (Path("main")).mkdir()
        Path("main/report.json").write_bytes((Path(words[1]) / "report.json").read_bytes())
        examples = [token.content for token in parsed(self.page) if token.type == "fence" and token.info == "toml"]
        Path("gate.toml").write_text("".join(examples))
        code, output = evasion(*words, "--json", "found.json")
        assert "Error:" not in output, output
        assert json.loads(Path("found.json").read_text())["outcome"] == ("pass", "fail", "cannot tell")[code]

    def evasion_mlflow(self, words):
        code, output = evasion(*words)
        assert (code, "no run of `evasion run --docker`" in output) == (2, True), output

    def report(self, folder, **model):
        """Write the report of a model where the command expects it."""
        self.request.getfixturevalue("mlflow_store")
        lab = Lab(self.folder / "lab" / Path(folder).name)
        lab.model |= model
        Report(lab.root, lab.two_attackers(), curve=lab.curve())
        Path(folder).mkdir(parents=True)
        (lab.root / "out" / "report.json").rename(Path(folder) / "report.json")

    def make(self, words):
        (target,) = (word for word in words if "=" not in word)
        # A folder's name would be a target that is always up to date.
        assert target in re.findall(r"(?m)^([a-z-]+):.*##", MAKEFILE), f"make has no target {target}"
        done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def python(self, words):
        assert words[0] == "-m"
        assert importlib.util.find_spec(words[1])
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    def source(self, words):
        (venv,) = re.findall(r"(?m)^VENV := (.*)$", MAKEFILE)
        assert words == [f"{venv}/bin/activate"]

    def pip_install(self, words):
        self.pip("install", words[1:])
        wheel = f"dist/{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}-py3-none-any.whl"
        given, extras = re.fullmatch(r"(.*)\[(.*)\]", words[-1]).groups()
        assert given in (".", wheel)
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
        assert len({"cpu", "gpu"} & set(extras.split(","))) == 1

    def pip_wheel(self, words):
        self.pip("wheel", words[1:])

    def pip(self, command, words):
        from pip._internal.commands import create_command

        create_command(command).parse_args(words)  # exits at an option that pip does not have

    def kubectl(self, words):
        """Look up namespaces, objects and files in the manifests, and what of Kubeflow's they name."""
        files = [*(ROOT / "manifests").rglob("*.yaml")]
        documents = [one for file in files for one in yaml.safe_load_all(file.read_text()) if isinstance(one, dict)]
        names = {one.get("metadata", {}).get("name") for one in documents} | {"ml-pipeline-ui"}
        spaces = {one["namespace"] for one in documents if "namespace" in one}
        assert option(words, "--namespace") in (None, *spaces)
        for word in words:
            kind, slash, name = word.partition("/")
            if slash and kind in ("deployment", "service", "statefulset"):
                assert name in names, f"the manifests have no {word}"
            elif slash and "://" not in word:
                assert (ROOT / word).exists(), f"there is no {word}"

    def docker(self, words):
        targets = re.findall(r"(?m)^FROM .* AS (\S+)$", (ROOT / "images/Dockerfile").read_text())
        images = {f"{PROJECT['name']}:{PROJECT['version']}{'' if one == 'cpu' else f'-{one}'}" for one in targets}
        named = {word for word in words if ":" in word and not word.startswith("-")}
        assert named <= images, f"the Dockerfile makes no {', '.join(named - images)}"


@pytest.fixture
def checks(request, tmp_path, monkeypatch):
    """Returns the checks of a page's commands; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("KFP_HOST", "KFP_TOKEN", "KFP_COOKIE", "KFP_NAMESPACE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return lambda page: Checks(request, page)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=name_of)
def test_a_command_works(page, command, checks):
    checks(page).check(command)


WRONG = [
    "evasion nosuch",
    "evasion run evalution --data-dir-test data/test",
    "evasion run evaluation --data-dir-test data/test --model m --model-architecture le_net --epz 0.1",
    "evasion run evaluation --model m --model-architecture le_net",
    "evasion run evaluation --data-dir-test data/test --model m --model-architecture lenet",
    "evasion run evaluation --data-dir-test data/test --model m --model-architecture le_net --attacks nosuch",
    "evasion submit evaluation --port-forward --data-dir-test /data --model m --model-architecture le_net --tll 1",
    "evasion submit evaluation --data-dir-test /data/test --model m --model-architecture le_net",
    "evasion compile evaluation --devise gpu",
    "evasion compile nosuch",
    "evasion gate runs/RUN --threshold nosuch",
    "evasion compare runs/ONE",
    "make demoo",
    "make docs",
    "python -m evasion.pipelines.nosuch data",
    "source .venv/bin/activat",
    "pip install '.[nosuch]'",
    "pip install '.[cpu,gpu]'",
    "pip install --nosuch '.[cpu]'",
    "pip wheel --nosuch .",
    "pip freeze",
    "kubectl apply -k manifests/overlays/nosuch",
    "kubectl port-forward --namespace kubeflow service/nosuch 5000",
    "kubectl get pods --namespace nosuch",
    "docker save evasion-pipelines:0.0.0",
    "curl --version",
]


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_noticed(command, checks):
    with pytest.raises((AssertionError, SystemExit)):
        checks(ROOT / "docs" / "gate.md").check(shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "kubectl apply -k manifests/overlays/local",
        "kubectl port-forward --namespace kubeflow service/mlflow 5000",
        f"docker save evasion-pipelines:{PROJECT['version']} evasion-pipelines:{PROJECT['version']}-mlflow",
    ],
)
def test_a_right_command_of_a_kind_that_no_page_has_is_taken(command, checks):
    checks(README).check(shlex.split(command))


@pytest.mark.parametrize(("command", "file", "test", "words"), COMPLETE, ids=[row[0] for row in COMPLETE])
def test_a_command_is_run_to_its_end_where_the_table_says(command, file, test, words):
    assert any(shlex.join(one).startswith(command) for _, one in COMMANDS), "no page has the command"
    text = (ROOT / file).read_text(encoding="utf-8")
    if test:
        (node,) = [one for one in ast.parse(text).body if getattr(one, "name", "") == test]
        text = ast.unparse(node)
    assert [word for word in words if word not in text] == []


def options_of(command):
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            found |= options_of(command.get_command(None, name))
    return found


@pytest.mark.parametrize("page", [page for page in LINKED if page.name != "CHANGELOG.md"], ids=name_of)
def test_options_and_targets_in_running_text_exist(page):
    command = EntryPoint("evasion", PROJECT["scripts"]["evasion"], "console_scripts").load()
    # Of pages that show how a step is added, and of another program.
    options = options_of(command) | {"--help", "--bit-depth-bits", "--momentum-decay"}
    targets = set(re.findall(r"(?m)^([a-z-]+):.*##", MAKEFILE))
    for code in (one.content for token in parsed(page) for one in token.children or () if one.type == "code_inline"):
        words = code.split()
        if words[:1] == ["make"]:
            assert [one for one in words[1:] if "=" not in one and one not in targets] == [], code
        elif words[:1] == ["evasion"] or code.startswith("--"):
            named = [one.partition("=")[0] for one in words if one.startswith("--")]
            assert [one for one in named if one not in options] == [], code
            assert len(words) < 2 or words[0] != "evasion" or words[1] in command.commands, code


@pytest.mark.parametrize("page", [page for page in LINKED if page.name != "CHANGELOG.md"], ids=name_of)
def test_files_in_running_text_exist(page):
    for code in (one.content for token in parsed(page) for one in token.children or () if one.type == "code_inline"):
        # Not what the examples make, and not what commands write.
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/[\w-]+\.(py|md|yaml|toml|ipynb)", code) and not re.search(MADE, code):
            places = (ROOT, ROOT / "components", ROOT / "pipelines", ROOT / "manifests", page.parent)
            assert any((place / code).is_file() for place in places), code


# -- what the README is ------------------------------------------------------------------------------------------------


def headings(page):
    tokens = parsed(page)
    return [
        (token.tag, tokens[place + 1].content, token.map[0])
        for place, token in enumerate(tokens)
        if token.type == "heading_open"
    ]


def test_the_readme_shows_the_result_first_and_has_its_sections_in_order():
    sections = [(text, line) for tag, text, line in headings(README) if tag == "h2"]
    assert [text for text, _ in sections] == [
        *("Requirements", "Install", "Quickstart", "Your model"),
        *("On a cluster", "Troubleshooting", "Links"),
    ]
    assert sections[0][1] <= 50
    assert "auto_attack eps=0.2 norm=inf" in README.read_text(encoding="utf-8")[:3000]


def test_the_quickstart_is_the_demo():
    done = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, check=True, capture_output=True, text=True)
    lines = re.sub(r"\\\n\s*", "", done.stdout).splitlines()
    demo = [shlex.split(line) for line in lines if "evasion.pipelines.mnist" in line or "evasion run" in line]
    shown = [words for page, words in COMMANDS if page == README]
    first = next(place for place, words in enumerate(shown) if words[0] == "python")
    assert [words[1:] for words in demo] == [words[1:] for words in shown[first : first + 2]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_begins_with_what_it_is_for_and_a_command(page):
    blocks = [token for token in parsed(page) if token.nesting == 1 or token.type == "fence"]
    assert [block.tag for block in blocks[:2]] == ["h1", "p"]
    command = next(block for block in blocks if block.type == "fence")
    assert command.info == "console"
    assert command.map[0] <= 12


def test_the_version_is_the_packages():
    for page in (README, *PAGES, ROOT / "images/README.md", ROOT / "manifests/README.md"):
        text = page.read_text(encoding="utf-8")
        found = re.findall(r"evasion-pipelines:(\d[\d.]*\d)|evasion_pipelines-(\d[\d.]*\d)-py3", text)
        assert {one or other for one, other in found} <= {PROJECT["version"]}, page.name


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    made = []
    for _, text, _ in headings(page):
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        made.append(slug if slug not in made else f"{slug}-{made.count(slug)}")
    return made


LINKS = [
    (page, str(one.attrs.get("href") or one.attrs.get("src")))
    for page in LINKED
    for token in parsed(page)
    for one in token.children or ()
    if one.type in ("link_open", "image")
]


@pytest.mark.parametrize(
    ("page", "link"),
    [(page, link) for page, link in LINKS if "://" not in link],
    ids=lambda one: one.name if isinstance(one, Path) else one,
)
def test_a_link_resolves(page, link):
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    assert not anchor or anchor in anchors(target)


def test_the_readme_leads_to_every_page():
    linked = {(README.parent / link).resolve() for page, link in LINKS if page == README}
    assert set(PAGES) <= linked


# -- errors ------------------------------------------------------------------------------------------------------------


def troubleshooting():
    (start,) = [line for tag, text, line in headings(README) if (tag, text) == ("h2", "Troubleshooting")]
    return [
        token.content.strip()
        for token in parsed(README)
        if token.type == "fence" and token.info == "text" and token.map[0] > start
    ]


def templates():
    """Yield every text of the source, as its parts that are no placeholders."""
    for root in ("components", "pipelines"):
        for file in (ROOT / root).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield [node.value]


TEMPLATES = list(templates())


def in_the_source(message):
    """Tell whether a text of the source, with anything for its placeholders, is the message for the most part."""
    for parts in TEMPLATES:
        written = sum(len(part) for part in parts if part)
        pattern = "".join(re.escape(part) if part else ".*" for part in parts)
        if written >= 0.4 * len(message) and re.fullmatch(pattern, message):
            return True
    return False


def without_frame(printed):
    """Return a message without what the command line adds: the step before it, the option behind it."""
    message = re.sub(r"^Error: ((load_dataset|load_model|infer|auto_attack): )?", "", printed)
    return re.sub(r" Set --[a-z-]+\.$", "", message)


def test_eleven_errors_are_explained():
    assert len(troubleshooting()) == 11


@pytest.mark.parametrize("printed", troubleshooting(), ids=lambda one: one[7:50])
def test_an_error_is_one_of_the_source(printed):
    assert printed.startswith("Error: ")
    assert in_the_source(without_frame(printed))


def test_an_error_that_the_source_does_not_have_is_noticed():
    assert not in_the_source("data_dir must be an existing directory. Received: data_dir='data/test'")
    assert not in_the_source("anything")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--data-dir-test data/test", "data_dir must be an existing folder"),
        ("--data-dir-test . --eps 8", "eps must be in (0, 1]"),
        ("--data-dir-test . --epochs 5", "epochs must be omitted"),
    ],
)
def test_an_error_is_printed_as_it_is_quoted(options, error, tmp_path, monkeypatch):
    (tmp_path / "class").mkdir()
    monkeypatch.chdir(tmp_path)
    model = ("--model", "evasion_le_net", "--model-architecture", "le_net")
    code, output = evasion("run", "evaluation", *model, *options.split())
    assert code == 2
    (quoted,) = [one for one in troubleshooting() if error in one]
    assert quoted in output.splitlines()
