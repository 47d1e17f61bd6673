"""What `train-templates` and `train-hypernet` run."""
