"""Baton and its peers under the same load, on the same cores."""
