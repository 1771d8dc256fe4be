"""Defenses: what a defense does to one image, the runner that all defenses share, and what an attacker knows."""
