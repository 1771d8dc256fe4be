"""Datasets: the tar that stages hand to each other, images, and where they come from."""
