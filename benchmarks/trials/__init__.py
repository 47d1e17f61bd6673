"""Trials of starts: sources that are learned once, methods that use them, suites of runs."""
