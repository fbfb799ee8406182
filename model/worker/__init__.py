"""What prefill and decode workers have in common: a process around an engine."""
