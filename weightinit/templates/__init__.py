"""Weight templates and scalers: WAVE and its special cases."""
