"""The `compare` stage: several models side by side, on one page for people and in one file for machines."""
