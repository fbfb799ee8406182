"""What Baton's processes share and what people import. Knows no torch."""
