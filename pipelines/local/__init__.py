"""Runs pipelines on this machine: kfp.local, in processes or in containers."""
