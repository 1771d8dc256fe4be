"""The result files of stages, and how their numbers are counted; a module each."""
