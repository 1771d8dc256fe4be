"""The files that the gate writes: JUnit XML, Markdown, SARIF 2.1.0 and JSON."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from evasion.components.common.files import replacing
from evasion.pipelines.gate.gate import Gate
from evasion.pipelines.gate.verdict import Judgement, Verdict

RULES = {
    "threshold": "The end of a number's 95 % interval that speaks against a threshold must meet it.",
    "baseline": "No row may be below the baseline's by more than noise (McNemar's exact test, Holm's adjustment).",
    "check": "The report's own checks must not fail.",
    "report": "The report must be whole.",
}
TITLES = {"threshold": "Thresholds", "baseline": "Against the baseline", "check": "Checks", "report": "Report"}
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {Judgement.FAIL: "error", Judgement.UNKNOWN: "warning"}


def write(gate: Gate, paths: Mapping[str, Path | None]) -> None:
    """Write the formats that have a path: all of them or none."""
    texts = {path: FORMATS[name](gate) for name, path in paths.items() if path}
    with ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(replacing(path)).write_text(text, encoding="utf-8")


def to_json(gate: Gate) -> str:
    """Everything that was judged, for programs."""
    return json.dumps(gate.to_json(), indent=1, ensure_ascii=False, allow_nan=False)


def to_junit(gate: Gate) -> str:
    """A test case for each verdict: a failure where it fails, an error where nobody can tell."""
    failed, unknown = (
        sum(each.judgement is what for each in gate.verdicts) for what in (Judgement.FAIL, Judgement.UNKNOWN)
    )
    counts = {"tests": str(len(gate.verdicts)), "failures": str(failed), "errors": str(unknown)}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "evasion gate", **counts, "skipped": "0"})
    for verdict in gate.verdicts:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": f"evasion.gate.{verdict.kind}", "name": _xml(_named(verdict)), "time": "0"}
        )
        if verdict.judgement is Judgement.PASS:
            ElementTree.SubElement(case, "system-out").text = _xml(verdict.text)
        else:
            element = "failure" if verdict.judgement is Judgement.FAIL else "error"
            attributes = {"type": verdict.judgement.value, "message": _xml(verdict.finding)}
            ElementTree.SubElement(case, element, attributes).text = _xml(verdict.text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def to_markdown(gate: Gate) -> str:
    """A summary for a pull request: what came out how, then why."""
    lines = [f"## Robustness gate: {gate.headline}", ""]
    if gate.report:
        lines += [_markdown(gate.report.headline), ""]
    for kind, verdicts in groupby(gate.verdicts, key=lambda each: each.kind):
        lines += [f"### {TITLES[kind]}", "", "| | asked | finding |", "| --- | --- | --- |"]
        lines += [
            f"| {_emphasis(each.judgement)} | {_markdown(_named(each))} | {_markdown(each.text)} |"
            for each in sorted(verdicts, key=lambda each: list(Judgement).index(each.judgement), reverse=True)
        ]
        lines.append("")
    return "\n".join(lines)


def to_sarif(gate: Gate) -> str:
    """A result for each verdict that is no pass, where it was asked for: in the settings' file, or the report."""
    results = [_result(gate, verdict) for verdict in gate.verdicts if verdict.judgement is not Judgement.PASS]
    driver = {
        "name": "evasion gate",
        "version": version("evasion-pipelines"),
        "rules": [
            {"id": kind, "name": TITLES[kind].title().replace(" ", ""), "shortDescription": {"text": text}}
            for kind, text in RULES.items()
        ],
    }
    # That the report fails is no failure of the tool.
    invocation = {"executionSuccessful": True, "exitCode": gate.judgement.exit_code}
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": "evasion-gate/"},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False)


def _result(gate: Gate, verdict: Verdict) -> dict[str, Any]:
    place = gate.settings.config or gate.path
    key = f"{verdict.kind}\n{verdict.name}\n{verdict.subject}"
    return {
        "ruleId": verdict.kind,
        "ruleIndex": list(RULES).index(verdict.kind),
        "level": LEVELS[verdict.judgement],
        "message": {"text": f"{_named(verdict)}: {verdict.judgement.value}. {verdict.text}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(place)},
                    "region": {"startLine": verdict.line or 1},
                }
            }
        ],
        "partialFingerprints": {"verdict/v1": hashlib.sha256(key.encode()).hexdigest()},
    }


def _uri(path: Path) -> str:
    """A path below the working folder as a code host knows it, else in full."""
    whole = path.absolute()
    return whole.relative_to(Path.cwd()).as_posix() if whole.is_relative_to(Path.cwd()) else whole.as_uri()


def _named(verdict: Verdict) -> str:
    return f"{verdict.name} ({verdict.subject})" if verdict.kind == "check" and verdict.subject else verdict.name


def _emphasis(judgement: Judgement) -> str:
    return judgement.value if judgement is Judgement.PASS else f"**{judgement.value}**"


def _xml(text: str) -> str:
    """A text without the control characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def _markdown(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    shown = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", shown).replace("@", "&#64;")


FORMATS = {"junit": to_junit, "markdown": to_markdown, "sarif": to_sarif, "json": to_json}
