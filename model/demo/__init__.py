"""The demo model: a small Llama, trained from scratch on text that this package writes itself."""
