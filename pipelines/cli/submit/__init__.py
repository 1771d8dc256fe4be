"""The command `evasion submit`."""
