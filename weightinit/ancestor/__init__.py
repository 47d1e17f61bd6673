"""From whatever a user calls an ancestor to weights that are read one tensor at a time."""
