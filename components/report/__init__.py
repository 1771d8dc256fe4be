"""The `report` stage: the results, on one page for people and in one file for machines."""
