"""Figures, as pure functions of arrays and tables."""
