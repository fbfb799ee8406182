"""The model and its engine: nets, cache, sampling, weights, scheduling, and the worker around them."""
