"""One file a method: pure functions from a source and a target anatomy to recipes."""
