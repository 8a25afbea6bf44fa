"""Training: an array of runs, side by side on the same batches."""
