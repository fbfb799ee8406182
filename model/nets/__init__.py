"""One decoder-only transformer for all supported families, reading a paged cache."""
