"""Settings, the files that the gate writes, and the command."""

import json
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from click.testing import CliRunner
from gating import judged
from junitparser import Error, Failure, JUnitXml
from markdown_it import MarkdownIt

from evasion.pipelines.cli import main
from evasion.pipelines.gate import outputs
from evasion.pipelines.gate.settings import settings
from evasion.pipelines.gate.threshold import parse

SCHEMA = json.loads(Path(__file__).parents[1].joinpath("data").joinpath("sarif-schema-2.1.0.json").read_text())


def evasion(*args: object) -> Any:
    return CliRunner().invoke(main.main, ["gate", *map(str, args)], prog_name="evasion")


CONFIG = """\
# What a change must keep: not robust_accuracy >= 0.2 alone.
thresholds = [
    "robust_accuracy >= 0.2",
    'clean_accuracy >= 0.9',
    "clean_accuracy >= 0.99",
]
allowed_drop = 0.01
accept_checks = ["enough images"]
baseline = "old/report.json"
"""


def test_options_add_to_the_file(tmp_path: Path) -> None:
    config = tmp_path / "gate.toml"
    config.write_text(CONFIG)
    found = settings(["gain > 0"], config, None, 0.02, ["another"])
    assert [(each.text, each.line) for each in found.thresholds] == [
        ("robust_accuracy >= 0.2", 3),
        ("clean_accuracy >= 0.9", 4),
        ("clean_accuracy >= 0.99", 5),
        ("gain > 0", None),
    ]
    assert found.baseline == tmp_path / "old" / "report.json"
    assert (found.allowed_drop, found.accept_checks) == (0.02, ("enough images", "another"))
    assert settings([], config, tmp_path / "new.json", None, []).baseline == tmp_path / "new.json"
    assert settings([], config, None, None, []).allowed_drop == 0.01


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thresholds = [", "gate.toml is not valid TOML: "),
        ("threshold = []", "may have thresholds, baseline, allowed_drop, accept_checks. Received: 'threshold'"),
        ("thresholds = 'x'", "thresholds in .* must be a list of texts. Received: 'x'"),
        ("thresholds = [1]", "must be a list of texts"),
        ("thresholds = ['x']", "a threshold must be METRIC"),
        ("allowed_drop = true", "must be a share such as 0.01. Received: True"),
        ("baseline = 'x'\nallowed_drop = 2", r"allowed_drop must be in \[0, 1\]. Received: allowed_drop=2"),
        ("", "needs a threshold or a baseline. Received: neither"),
    ],
)
def test_a_file_that_breaks_a_rule_says_which(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "gate.toml"
    config.write_text(text)
    with pytest.raises(ValueError, match=said):
        settings([], config, None, None, [])


def written(folder: Path) -> dict[str, Path]:
    return {name: folder / f"gate.{name}" for name in outputs.FORMATS}


@pytest.fixture(scope="module")
def failed(reports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All files of a gate with passes, failures and doubts."""
    folder = tmp_path_factory.mktemp("failed")
    (folder / "gate.toml").write_text(CONFIG.replace("old/report.json", str(reports["usual"])))
    paths = written(folder)
    options = [each for name, path in paths.items() for each in (f"--{name}", path)]
    result = evasion(reports["worse"], "--config", folder / "gate.toml", "--threshold", "gain > 0", *options)
    assert result.exit_code == 1, result.output
    return paths | {"output": folder}


def test_json_holds_everything(failed: dict[str, Path], reports: dict[str, Path]) -> None:
    made = json.loads(failed["json"].read_text())
    assert (made["schema_version"], made["outcome"], made["exit_code"]) == (2, "fail", 1)
    assert made["report"]["path"] == str(reports["worse"])
    assert {each["outcome"] for each in made["verdicts"]} == {"pass", "fail", "cannot tell"}
    numbers = made["verdicts"][0]["numbers"]
    assert (numbers["metric"], numbers["comparator"], numbers["limit"], numbers["n"]) == (
        "robust_accuracy",
        ">=",
        0.2,
        400,
    )


def test_junit_is_read_by_what_reads_junit(failed: dict[str, Path]) -> None:
    made = json.loads(failed["json"].read_text())["verdicts"]
    (suite,) = JUnitXml.fromfile(str(failed["junit"]))
    kinds = {"fail": Failure, "cannot tell": Error}
    assert [(case.name, [type(each) for each in case.result]) for case in suite] == [
        (each["name"], [kinds[each["outcome"]]] if each["outcome"] in kinds else []) for each in made
    ]
    counted = [sum(each["outcome"] == name for each in made) for name in ("fail", "cannot tell")]
    assert [suite.tests, suite.failures, suite.errors] == [len(made), *counted]
    assert suite.name == "evasion gate"


def test_sarif_is_valid_and_points_at_the_rule(failed: dict[str, Path]) -> None:
    made = json.loads(failed["sarif"].read_text())
    jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(made)
    (run,) = made["runs"]
    verdicts = [each for each in json.loads(failed["json"].read_text())["verdicts"] if each["outcome"] != "pass"]
    assert [each["level"] for each in run["results"]] == [
        {"fail": "error", "cannot tell": "warning"}[each["outcome"]] for each in verdicts
    ]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[each["ruleIndex"]]["id"] for each in run["results"]] == [each["kind"] for each in verdicts]
    places = [each["locations"][0]["physicalLocation"] for each in run["results"]]
    assert places[0]["region"]["startLine"] == 3
    assert places[0]["artifactLocation"]["uri"] == (failed["output"] / "gate.toml").as_uri()
    fingerprints = [each["partialFingerprints"]["verdict/v1"] for each in run["results"]]
    assert len(set(fingerprints)) == len(fingerprints)


def test_sarif_names_files_as_the_code_host_does(
    reports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "gate.toml").write_text('thresholds = ["robust_accuracy >= 0.9"]')
    monkeypatch.chdir(tmp_path)
    assert evasion(reports["few"], "--config", "ci/gate.toml", "--sarif", "gate.sarif").exit_code == 1
    (result,) = json.loads(Path("gate.sarif").read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "ci/gate.toml"


def test_markdown_shows_a_table_for_each_kind(failed: dict[str, Path]) -> None:
    text = failed["markdown"].read_text()
    assert text.startswith("## Robustness gate: fail: ")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert sum(token.type == "table_open" for token in tokens) == 3
    rows = sum(token.type == "tr_open" for token in tokens) - 3
    assert rows == len(json.loads(failed["json"].read_text())["verdicts"])
    assert text.index("**fail**") < text.index("| pass |")


def test_names_stay_text(reports: dict[str, Path], tmp_path: Path) -> None:
    nasty = "<b>|`x`\n[y](javascript:z) @all \x01 &"
    changed = json.loads(reports["few"].read_text())
    changed["headline"] = nasty
    changed["metrics"]["checks_failed"] += 1
    changed["checks"] += [{"name": nasty, "subject": nasty, "status": "fail", "finding": nasty, "advice": nasty}]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(changed))
    paths = written(tmp_path / "out")
    options = [each for name, file in paths.items() for each in (f"--{name}", file)]
    result = evasion(path, "--threshold", "robust_accuracy >= 0", *options)
    assert result.exit_code == 2, result.output
    text = paths["markdown"].read_text()
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert "<b>" not in shown
    assert "<a " not in shown
    assert "<code>" not in shown
    assert "@" not in text
    assert shown.count("<tr>") == 2 + len(json.loads(paths["json"].read_text())["verdicts"])
    assert ElementTree.parse(paths["junit"]).getroot().tag == "testsuites"
    jsonschema.Draft4Validator(SCHEMA).validate(json.loads(paths["sarif"].read_text()))


@pytest.mark.parametrize(
    ("threshold", "code"),
    [("robust_accuracy >= 0.2", 0), ("robust_accuracy >= 0.3", 1), ("robust_accuracy >= 0.25", 2)],
)
def test_the_exit_code_tells_the_outcome(reports: dict[str, Path], threshold: str, code: int) -> None:
    # A folder of a run stands for the report in it.
    result = evasion(reports["usual"].parent, "--threshold", threshold)
    assert result.exit_code == code, result.output
    assert result.stdout.splitlines()[-1].startswith(("pass: ", "fail: ", "cannot tell: ")[code])
    assert "25.0" in result.stdout


def damaged(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def without(path: Path, part: str, place: int) -> None:
    """Remove one entry."""
    entries = json.loads(path.read_text())[part]
    damaged(path, **{part: entries[:place] + entries[place + 1 :]})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "there is no report at"),
        (lambda path: path.write_text("{"), "is not valid JSON"),
        (lambda path: path.write_text("[]"), "is not as report writes it"),
        (lambda path: path.write_bytes(b"\xff"), "is not valid JSON"),
        (lambda path: damaged(path, schema_version=1), "must be of schema_version 4"),
        (lambda path: damaged(path, evaluations=[]), "evaluations must have 1 to 1,024 entries. Received: 0"),
        (lambda path: damaged(path, checks=[]), "checks must have 1 to 1,024 entries. Received: 0"),
        (lambda path: damaged(path, datasets=[]), "datasets must have 1 to 1,024 entries"),
        (lambda path: without(path, "datasets", 2), "datasets and evaluations must be of the same. Only evaluations"),
        (lambda path: without(path, "evaluations", 0), "Only datasets has 'clean'"),
        (lambda path: without(path, "table", 1), "the table and evaluations must be of the same. Only evaluations has"),
        (lambda path: damaged(path, headline=["x"]), "headline: Input should be a valid string"),
        (lambda path: damaged(path, metrics={"x\ny": "z"}), "metrics.'x\\ny': Input should be"),
        (lambda path: damaged(path, schema_version="9" * 5000), "Received: '9999"),
        (lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "is not valid JSON: recursion limit exceeded"),
        (
            lambda path: path.write_text(
                path.read_text().replace('"settings": {', '"settings": {"x":' + "[" * 10**5, 1)
            ),
            "is not valid JSON: recursion limit exceeded",
        ),
        (lambda path: damaged(path, table=[{}]), "lacks table.0.attack"),
        (lambda path: path.write_text(path.read_text().replace('"count": 100\n', '"count": 101\n')), "is not a share"),
        (
            lambda path: path.write_text(path.read_text().replace('"correct": 392,', '"correct": 393,')),
            "do not count 393",
        ),
    ],
)
def test_a_damaged_report_is_a_verdict_and_every_file_is_written(
    reports: dict[str, Path], tmp_path: Path, damage: Any, said: str
) -> None:
    path, paths = tmp_path / "report.json", written(tmp_path / "out")
    shutil.copyfile(reports["usual"], path)
    damage(path)
    options = [each for name, file in paths.items() for each in (f"--{name}", file)]
    result = evasion(path, "--threshold", "gain >= -0.5", *options)
    assert result.exit_code == 2, result.output
    (found, *_) = json.loads(paths["json"].read_text())["verdicts"]
    assert found["outcome"] == "cannot tell"
    assert said in found["finding"]
    assert len(found["finding"].splitlines()) == 1
    assert len(found["finding"]) < 1_000
    assert all(file.stat().st_size for file in paths.values())


@pytest.mark.parametrize("status", ["fail", "warn"])
def test_a_report_without_a_check_that_did_not_pass_decides_nothing(
    reports: dict[str, Path], tmp_path: Path, status: str
) -> None:
    content = json.loads(reports["untrained"].read_text())
    content["checks"][-1]["status"] = status
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    (verdict,) = judged(path, "robust_accuracy >= 0.1")
    assert verdict.judgement.value == "cannot tell"
    assert f"checks must be those that checks_{status}ed counts" in verdict.finding


def test_a_damaged_baseline_is_a_verdict(reports: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("{}")
    found = judged(reports["usual"], "robust_accuracy >= 0.2", baseline=path)
    assert [(each.kind, each.judgement.value) for each in found] == [
        ("threshold", "pass"),
        ("baseline", "cannot tell"),
        ("check", "pass"),
    ]
    assert str(path) in found[1].finding


LONG = "x" * 5_000


def config_of(text: str) -> Any:
    """Write a file for `--config`, and return its option."""

    def options(folder: Path) -> tuple[object, ...]:
        (folder / "gate.toml").write_text(text)
        return "--config", folder / "gate.toml"

    return options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (config_of("baseline = '" + LONG[:1_900] + "'"), "a report must be a file or a folder: File name too long"),
        (config_of(f"baseline = '{LONG}'"), "2,000 characters in a line. Received: 5,013 characters in a line"),
        (config_of("a." * 900 + "b = 1\n" * 2), "Received: 'a'"),
        (config_of("\n".join(f"{'a.' * 990}b{number} = 1" for number in range(16))), "gate.toml may have thresholds"),
        (config_of("\n" * 40_000), "must have at most 32,768 bytes"),
        (config_of("a = [" + "\n[" * 16_000), "it nests too deeply"),
        (config_of("a = " + "{a = " * 399), "it nests too deeply"),
        (config_of("allowed_drop = " + "1" * 1_900 + "." + "0" * 50), "allowed_drop must be in [0, 1]"),
        (config_of("thresholds = [" + "'gain > 0 for " + " " * 1_900 + "x']"), "at most 1,000 characters"),
        (config_of("thresholds = [" + "'gain > 0',\n" * 2_000 + "'gain > 9']"), "gain must be in [-1, 1]"),
        (config_of(f"'{LONG[:1_000]}' = 1"), "… (1,002 characters)"),
        (lambda _: ("--baseline", LONG), "a report must be a file or a folder: File name too long"),
        (config_of('baseline = "a\\u0000b"'), "embedded null"),
        (lambda _: ("--threshold", LONG), "at most 1,000 characters"),
        (lambda _: ("--threshold", "gain > " + "9" * 900 + "/1"), "NUMBER must be like"),
        (lambda _: ("--threshold", "robust_accuracy >= 0" + " " * 40_000 + "x"), "at most 1,000 characters"),
    ],
)
def test_hostile_settings_are_refused_at_once_in_one_line(
    reports: dict[str, Path], tmp_path: Path, options: Any, said: str
) -> None:
    """Each took minutes, or ended in a traceback."""
    evasion(reports["usual"], "--threshold", "gain > 0")  # imports what the clock below shall not count
    start = time.process_time()
    result = evasion(reports["usual"], *options(tmp_path))
    assert time.process_time() - start < 1
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit), result.exception
    assert said in " ".join(result.stderr.split())
    assert len(result.stderr) < 1_500


def test_a_report_of_an_impossible_path_is_refused() -> None:
    for arguments in (("gate", LONG, "--threshold", "gain > 0"), ("compare", LONG, LONG)):
        result = CliRunner().invoke(main.main, arguments, prog_name="evasion")
        assert result.exit_code == 2
        assert "File name too long" in " ".join(result.stderr.split())
        assert len(result.stderr) < 1_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "gate needs a threshold or a baseline"),
        (("--threshold", "robust"), "a threshold must be METRIC"),
        (("--config", "nowhere.toml"), "there is no file nowhere.toml"),
        (("--threshold", "gain > 0", "--allowed-drop", "2"), "allowed_drop must be in [0, 1]"),
        (("--threshold", "gain > 0", "--json", "a", "--junit", "a"), "--junit must be a file of its own. Received: a"),
    ],
)
def test_the_command_refuses_bad_input(
    reports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = evasion(reports["usual"], *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_the_report_is_never_written_over(reports: dict[str, Path]) -> None:
    before = reports["usual"].read_bytes()
    result = evasion(reports["usual"], "--threshold", "gain > 0", "--json", reports["usual"])
    assert result.exit_code == 2
    assert "must be a file of its own" in result.stderr
    assert reports["usual"].read_bytes() == before


def test_where_one_file_cannot_be_written_none_is(reports: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = evasion(
        reports["usual"],
        "--threshold",
        "robust_accuracy > 0",
        "--json",
        tmp_path / "j",
        "--sarif",
        tmp_path / "file" / "s",
    )
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_example_of_the_documentation_is_valid() -> None:
    text = Path(__file__).parents[3].joinpath("docs", "gate.md").read_text(encoding="utf-8")
    (block,) = [part.split("```")[0] for part in text.split("```toml\n")[1:]]
    found = tomllib.loads(block)
    assert found["thresholds"]
    assert all(parse(each) for each in found["thresholds"])
