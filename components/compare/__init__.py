"""The `compare` stage: what the evaluations found, on one page for people and in one file for machines."""
