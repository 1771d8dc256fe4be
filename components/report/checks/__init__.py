"""The checks of a report: whether its numbers can be trusted."""
