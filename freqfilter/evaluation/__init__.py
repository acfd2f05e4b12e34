"""Judging: scores of anything that estimates, and figures."""
