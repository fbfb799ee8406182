"""The engine: one scheduler of prefill chunks and decode steps, and the runners behind it."""
