"""`evasion gate`: holds a report to thresholds and to a baseline."""
