"""What is run on a GPU machine, in which order, and what came of it."""
