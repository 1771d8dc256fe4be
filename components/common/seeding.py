"""The seed of a stage: the one requested, or a random one."""

import secrets

RANDOM = -1


def resolve(seed: int) -> int:
    """Return `seed`, or a random one if it is -1, so that every stage can record the seed it used."""
    return secrets.randbelow(2**31) if seed == RANDOM else seed
