"""Models: their artifact and card, architectures, and the classifier that attacks and evaluations use."""
