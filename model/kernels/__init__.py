"""C of our own, compiled when it is first needed; torch computes the same where it cannot be."""
