"""Training: data, loop, metrics, samples."""
