"""The relay: Prefill calls and their KV between workers that cannot reach one another.

    decode worker                 relay                          prefill worker
        |  Prefill, baton-target:P  |                                   |
        |-------------------------->| caller and P registered and live? |
        |                           |---------- Prefill --------------->|
        |<------ accepted ----------| kv_token -> this call <-----------|
        |  Read(kv_token)           |                                   |
        |-------------------------->| of a live call?                   |
        |                           |---------- Read ------------------>|
        |<====== frame, frame ======| one in hand <=====================|

It forwards between workers that it watches itself, and dials no other address. A read belongs to
the Prefill call whose answer brought its token, and ends with it; a call ends with either of its
ends, at once. Heartbeats pass from end to end, so a silent end is noticed by the other, not here.
Messages are passed on as bytes, one at a time per stream; what a slow reader leaves unread stays
with the sender, but for that one and gRPC's window.

    service.py      who may call whom; live calls and their reads
    forwarding.py   bytes from one call into another
    admin.py        /cluster, /health, /ready and /metrics
"""
