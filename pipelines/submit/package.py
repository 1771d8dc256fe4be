"""A package to submit: the compiled YAML of a pipeline, its parameters, and the steps that it will run."""

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
        pipeline: The pipeline as kfp loaded or compiled it, with the same specification as the YAML.
        content: The YAML.
    """

    pipeline: Any
    content: bytes

    @classmethod
    def of(cls, placed: Any) -> "Package":
        """Compile a placed pipeline."""
        with tempfile.TemporaryDirectory() as folder:
            content = compile_to(placed, Path(folder, "package.yaml")).read_bytes()
        return cls(placed, content)

    @classmethod
    def read(cls, file: Path) -> "Package":
        """Read a compiled pipeline.

        Raises:
            ValueError: The file is not a compiled pipeline.
        """
        from kfp import components

        content = file.read_bytes()
        try:
            loaded = components.load_component_from_text(content.decode())
            # kfp parses the text again at each access to the specification, which takes seconds.
            pipeline = SimpleNamespace(
                name=loaded.name, component_spec=loaded.component_spec, pipeline_spec=loaded.pipeline_spec
            )
        except Exception as error:
            # kfp passes on any exception of its parsers.
            raise ValueError(f"{file} must be the YAML of a compiled pipeline: {error}") from error
        # kfp drops the descriptions.
        for name, declared in pipeline.pipeline_spec.root.input_definitions.parameters.items():
            pipeline.component_spec.inputs[name].description = declared.description
        if not pipeline.pipeline_spec.root.dag.tasks:
            raise ValueError(f"{file} must be the YAML of a compiled pipeline; it contains no step.")
        return cls(pipeline, content)

    @property
    def name(self) -> str:
        """The pipeline's name in Kubeflow."""
        return str(self.pipeline.pipeline_spec.pipeline_info.name)

    @property
    def version(self) -> str:
        """The version's name, unique to the content; Kubeflow requires it to be unique among all pipelines."""
        return f"{self.name}-{hashlib.sha256(self.content).hexdigest()[:VERSION_DIGITS]}"

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """The specification as plain values."""
        from google.protobuf import json_format  # type: ignore[import-untyped]

        spec: dict[str, Any] = json_format.MessageToDict(self.pipeline.pipeline_spec)
        return spec

    def variable(self, name: str) -> str:
        """Return the value of an environment variable of the steps, or blank."""
        for executor in self.spec["deploymentSpec"]["executors"].values():
            for variable in executor.get("container", {}).get("env", ()):
                if variable["name"] == name:
                    return str(variable["value"])
        return ""

    def secret(self, variable: str) -> str:
        """Return the Secret that provides an environment variable of the steps, or blank."""
        from google.protobuf import json_format

        kubernetes = json_format.MessageToDict(self.pipeline.component_spec.platform_spec.platforms["kubernetes"])
        for executor in kubernetes.get("deploymentSpec", {}).get("executors", {}).values():
            for secret in executor.get("secretAsEnv", ()):
                if any(key["envVar"] == variable for key in secret["keyToEnv"]):
                    return str(secret["secretName"])
        return ""

    def plan(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[plan.PlannedStep]]:
        """Validate the arguments; return the value of every parameter and the steps that will run.

        Raises:
            BadArgumentsError: The arguments are invalid.
        """
        values = plan.complete(self.pipeline, arguments)
        planned = plan.planned_steps(self.pipeline, values)
        plan.check(planned, elsewhere=True)
        return values, planned
