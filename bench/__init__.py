"""Measuring Baton: each module is one benchmark, a table on the terminal and JSON for the rest."""
