"""Describes the interface of a compiled pipeline in a readable text, so that a diff shows every change of it.

    python tests/pipelines/interface.py

updates the texts in `tests/pipelines/interface/`, which `test_compiled.py` compares; `make compile` does so as well.
A text contains names, types, defaults, images, resources and the graph, but not the code and the descriptions.
"""

import json
from collections import defaultdict
from pathlib import Path

import yaml

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"
TEXTS = Path(__file__).parent / "interface"


def text_of(compiled):
    """The path of the text for a compiled pipeline."""
    return TEXTS / compiled.relative_to(COMPILED).with_suffix(".txt")


def describe(compiled):
    spec, platforms = yaml.safe_load_all(compiled.read_text())
    executors = spec["deploymentSpec"]["executors"]
    placed = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    lines = [f"pipeline {spec['pipelineInfo']['name']}", "", "parameters"]
    lines += [f"  {line}" for line in parameters(spec["root"])]
    lines += ["", "graph", *graph(spec, spec["root"]["dag"], "  "), "", "steps"]
    for name in sorted(spec["components"]):
        lines += component(name, spec["components"][name])
    lines += ["", "where they run"]
    alike = defaultdict(list)
    for name, executor in executors.items():
        placement = "\n".join(f"    {line}" for line in place(executor, placed.get(name, {})))
        alike[placement].append(name.removeprefix("exec-"))
    for placement, names in sorted(alike.items(), key=lambda item: item[1]):
        lines += [f"  {', '.join(names)}", placement]
    return "\n".join(lines) + "\n"


def parameters(component):
    for name, declared in component.get("inputDefinitions", {}).get("parameters", {}).items():
        default = f" = {json.dumps(declared['defaultValue'])}" if "defaultValue" in declared else ""
        yield f"{name}: {declared['parameterType']}{default}"


def component(name, declared):
    """The inputs and outputs of a step, once for all its tasks."""
    base = name.removeprefix("comp-")
    if "dag" in declared or base.rpartition("-")[2].isdigit():
        return
    yield f"  {base}"
    for line in parameters(declared):
        yield f"    {line}"
    for key, arrow in (("inputDefinitions", "takes"), ("outputDefinitions", "gives")):
        for artifact, one in declared.get(key, {}).get("artifacts", {}).items():
            optional = ", or nothing" if one.get("isOptional") else ""
            several = "list of " if one.get("isArtifactList") else ""
            yield f"    {arrow} {artifact}: {several}{one['artifactType']['schemaTitle']}{optional}"
    for output, one in declared.get("outputDefinitions", {}).get("parameters", {}).items():
        yield f"    gives {output}: {one['parameterType']}"


def graph(spec, dag, indent):
    for name, task in dag["tasks"].items():
        settings = [json.dumps(task["taskInfo"]["name"], ensure_ascii=False)]
        if "condition" in task.get("triggerPolicy", {}):
            settings.append(f"if {task['triggerPolicy']['condition']}")
        if "strategy" in task.get("triggerPolicy", {}):
            settings.append(task["triggerPolicy"]["strategy"])
        if "parameterIterator" in task:
            items = task["parameterIterator"]["items"]["inputParameter"]
            settings.append(f"for each of {came_from(task['inputs']['parameters'][items])}")
        inner = spec["components"][task["componentRef"]["name"]]
        if "dag" not in inner:
            settings.append("cached" if task.get("cachingOptions", {}).get("enableCache") else "not cached")
            if "retryPolicy" in task:
                policy = task["retryPolicy"]
                settings.append(
                    f"{policy['maxRetryCount']} retries after {policy['backoffDuration']}"
                    f" × {policy['backoffFactor']:g} up to {policy['backoffMaxDuration']}"
                )
        yield f"{indent}{name}: {', '.join(settings)}"
        for after in task.get("dependentTasks", []):
            yield f"{indent}  after {after}"
        if "dag" in inner:
            yield from graph(spec, inner["dag"], indent + "    ")
        else:
            for kind in ("artifacts", "parameters"):
                for key, source in task.get("inputs", {}).get(kind, {}).items():
                    yield f"{indent}  {key} <- {came_from(source)}"


def came_from(source):
    for key in ("taskOutputArtifact", "taskOutputParameter"):
        if key in source:
            producer = source[key]
            return f"{producer['producerTask']}.{producer.get('outputArtifactKey') or producer['outputParameterKey']}"
    if "runtimeValue" in source:
        return json.dumps(source["runtimeValue"]["constant"])
    (outer,) = source.values()
    return str(outer).removeprefix("pipelinechannel--")


def place(executor, placed):
    container = executor.get("container")
    if container is None:
        yield "no container"
        return
    yield f"image {container['image']}"
    for key, value in container.get("resources", {}).items():
        # Old backends read numbers, which repeat the texts.
        if key == "accelerator":
            yield f"accelerator {value['resourceCount']} × {value['resourceType']}"
        elif isinstance(value, str):
            yield f"{key} {value}"
    for variable in container.get("env", []):
        yield f"env {variable['name']} = {variable['value']}"
    for key, value in placed.items():
        yield f"{key} {json.dumps(value, sort_keys=True)}"


if __name__ == "__main__":
    for file in sorted(TEXTS.rglob("*.txt")):
        file.unlink()
    for file in sorted(COMPILED.rglob("*.yaml")):
        text_of(file).parent.mkdir(parents=True, exist_ok=True)
        text_of(file).write_text(describe(file))
        print(text_of(file).relative_to(Path.cwd()))
