"""Sampling: a pure function of (logits, spec, prompt ids, generated ids). NumPy alone."""
