"""The model and its engine: nets, cache, sampling, weights, scheduling, worker processes."""
