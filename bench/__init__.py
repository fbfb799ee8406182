"""Measuring Baton: each module with a ``main`` is a benchmark, tables on the terminal and JSON."""
