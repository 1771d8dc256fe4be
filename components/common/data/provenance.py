"""The words that a dataset's provenance uses."""

AWARE, OBLIVIOUS = "defense-aware", "oblivious"
KNOWLEDGE = (AWARE, OBLIVIOUS)
"""What an attacker may know of a defense, in the order in which results are shown."""

LOAD, ATTACK, DEFENSE = "load", "attack", "defense"
"""The kinds of stages that a dataset goes through."""
