"""The seed of a stage: given, or drawn and told."""

import secrets

RANDOM = -1


def resolve(seed: int) -> int:
    """Return `seed`, or a fresh one where it is -1, so that every stage can record the seed it used."""
    return secrets.randbelow(2**31) if seed == RANDOM else seed
