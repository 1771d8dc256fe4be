"""The packages: every folder with modules below `components` and `pipelines`, under the namespace `evasion`."""

from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
setup(
    packages=sorted(
        {
            ".".join(("evasion", *file.parent.relative_to(here).parts))
            for root in ("components", "pipelines")
            for file in (here / root).rglob("*.py")
        }
    )
)
