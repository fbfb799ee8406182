"""How many workers of which kind to have, found by simulation."""
