"""The recipes behind `train-templates` and `train-hypernet`."""
