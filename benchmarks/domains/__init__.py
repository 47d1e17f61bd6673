"""What a start is worth in one line of work: data, models of any size, a loss and scores."""
