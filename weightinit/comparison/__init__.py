"""Which start for a model: each tried on the user's own data."""
