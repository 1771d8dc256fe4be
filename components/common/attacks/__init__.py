"""Attacks: the runner that every attack shares, and the view of an attacker who knows a defense."""
