"""Jobs: one module for each, which reads from top to bottom."""
