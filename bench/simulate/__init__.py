"""Baton in virtual time: its own placement, admission and scheduler, with a cost model for compute
and network. See ``fleet.py`` for what is the real code and what stands for it."""
