"""KV through a relay, for workers that cannot reach one another: ``python -m gateway.relay``.

    decode worker D                    relay R                      prefill worker P
    ---------------                    -------                      ----------------
    Prefill(baton-target: P)       ->  D and P both registered
                                       and live? else refused   ->  Prefill
                                   <-  remembers the kv_token   <-  accepted: relay, kv_token
    Read(kv_token)                 ->  of a live call?          ->  Read
                                   <=  frames, as they are      <=

It is ``grpc`` with somebody between, who knows a reading by the Prefill call that it belongs to.
So the Prefill call must go through the relay for the KV to; the decode worker decides that per
instance (decode_worker/routes.py) and offers ``relay`` only then.
"""

from __future__ import annotations

NAME = "relay"

#: gRPC metadata of a Prefill call to a relay: the instance id of the prefill worker it is for.
TARGET = "baton-target"

#: Transports that need a way from the decode worker's host to the prefill worker's address.
DIRECT = frozenset({"grpc", "nixl"})
