"""Judges a report by thresholds, a baseline and its own checks."""
