"""Comparisons of methods, and searches over their settings: paired runs, intervals, verdicts, reports."""
