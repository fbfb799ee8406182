"""Hugging Face checkpoints: found, checked whole, loaded, and told apart by a revision."""
