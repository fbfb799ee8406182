"""The hand-off of KV: what is sent in which pieces, and the transports that carry it."""
