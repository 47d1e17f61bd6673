"""Ways to inherit weights: one file each over the shared machinery."""
