"""Defenses: what a defense does to one image, the runner that every defense shares, and what an attacker knows of it."""
