"""The command line `evasion`; a module each command."""
