"""Pipelines built of the steps in `evasion.components`, and the command line that compiles and runs them."""
