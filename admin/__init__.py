"""The dashboard: a view of statistics and knobs."""
