"""What is submitted: the compiled YAML of a pipeline, its parameters, and the steps that it will run."""

import functools
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from evasion.pipelines import plan
from evasion.pipelines.compiled_yaml import compile_to

VERSION_DIGITS = 12  # of the hash, in a version's name


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        pipeline: What kfp has made of it; its specification is that of the YAML.
        content: The YAML.
    """

    pipeline: Any
    content: bytes

    @classmethod
    def of(cls, placed: Any) -> "Package":
        """Compile a pipeline that a placement has been written into."""
        with tempfile.TemporaryDirectory() as folder:
            content = compile_to(placed, Path(folder, "package.yaml")).read_bytes()
        return cls(placed, content)

    @classmethod
    def read(cls, file: Path) -> "Package":
        """Take a YAML that was compiled before.

        Raises:
            ValueError: It is none.
        """
        from kfp import components

        content = file.read_bytes()
        try:
            loaded = components.load_component_from_text(content.decode())
            # kfp parses the text anew whenever it is asked for its specification, which takes seconds.
            pipeline = SimpleNamespace(
                name=loaded.name, component_spec=loaded.component_spec, pipeline_spec=loaded.pipeline_spec
            )
        except Exception as error:
            # kfp lets through whatever its parsers raise.
            raise ValueError(f"{file} must be the YAML of a compiled pipeline: {error}") from error
        # Nor does it keep the descriptions.
        for name, declared in pipeline.pipeline_spec.root.input_definitions.parameters.items():
            pipeline.component_spec.inputs[name].description = declared.description
        if not pipeline.pipeline_spec.root.dag.tasks:
            raise ValueError(f"{file} must be the YAML of a compiled pipeline; it holds no step.")
        return cls(pipeline, content)

    @property
    def name(self) -> str:
        """The pipeline's name in Kubeflow."""
        return str(self.pipeline.pipeline_spec.pipeline_info.name)

    @property
    def version(self) -> str:
        """The version's name, another one for another content; Kubeflow wants it unique among all pipelines."""
        return f"{self.name}-{hashlib.sha256(self.content).hexdigest()[:VERSION_DIGITS]}"

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """The specification, as plain values."""
        from google.protobuf import json_format  # type: ignore[import-untyped]

        found: dict[str, Any] = json_format.MessageToDict(self.pipeline.pipeline_spec)
        return found

    def variable(self, name: str) -> str:
        """Return the value that an environment variable of the steps has, or nothing."""
        for executor in self.spec["deploymentSpec"]["executors"].values():
            for variable in executor.get("container", {}).get("env", ()):
                if variable["name"] == name:
                    return str(variable["value"])
        return ""

    def secret(self, variable: str) -> str:
        """Return the Secret that gives the steps an environment variable, or nothing."""
        from google.protobuf import json_format

        kubernetes = json_format.MessageToDict(self.pipeline.component_spec.platform_spec.platforms["kubernetes"])
        for executor in kubernetes.get("deploymentSpec", {}).get("executors", {}).values():
            for secret in executor.get("secretAsEnv", ()):
                if any(one["envVar"] == variable for one in secret["keyToEnv"]):
                    return str(secret["secretName"])
        return ""

    def plan(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[plan.PlannedStep]]:
        """Return the value of every parameter and the steps that will run, each held to its rules.

        Raises:
            BadArgumentsError: The arguments break a rule.
        """
        values = plan.complete(self.pipeline, arguments)
        planned = plan.planned_steps(self.pipeline, values)
        plan.check(planned, elsewhere=True)
        return values, planned
