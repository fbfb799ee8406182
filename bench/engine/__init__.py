"""How fast a model is computed, beside the hardware and beside others: see ``__main__``."""
