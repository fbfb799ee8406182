"""KV over NIXL: the decode side READs the prefill side's pool, straight into its own.

    decode worker D                                   prefill worker P
    ---------------                                   ----------------
    pool registered, once                             pool and seals registered, once
    PrefillStart: nixl is offered                 ->  open offer: hold the blocks, set a seal
                                                  <-  PrefillAccepted: NixlSource (where, which)
    connect to P's agent, if it is not yet
                                                  <-  LayerReady(layer, end), on the call itself
    READ of these blocks, ... and so on
    READ of the seal: still whole?
    KvReceived                                    ->  break the seal, then let the blocks go

One copy in all, made by the network card, by NVLink or by the kernel (CMA, within a host). What a
READ needs travels inside the Prefill call; neither side listens for anything of its own.

**Only READs that the hardware or the kernel carries out.** UCX can also emulate them by messages
over TCP. That is slower than gRPC, needs the prefill side to answer, and leaves bytes landing for
as long as a stopped peer pleases; so it is forbidden (``api.py``). A pair without anything better
finds out with its first READ, and uses the next transport from then on.

**A seal in place of a confirmation.** The prefill side does not see READs. It holds the blocks
for as long as its offer is open, and before it lets them go it breaks the offer's seal: 16 random
bytes beside the pool. The reader READs the seal after its last byte. Is it whole, all that was
read before was read while the blocks were held; is it not, nothing that came is used. So a reader
that was stopped, cut off or cancelled and reads on cannot decode from blocks that were reused, and
the prefill side need not wait for a word from a peer that may be gone for good.

**Where bytes may land.** A cancelled reading keeps its blocks until each of its READs has ended,
well or badly. NIXL cannot end one: releasing its handle, or removing the peer, leaves the bytes
landing (measured). One that nobody wants any more and that does not end by itself is ended by
closing the whole agent, which breaks all its connections; a new agent takes its place.

**One thread per agent makes all calls to it**, as they may block and none of them may meet another.
There is no progress thread of NIXL's, which would spin. ``thread.py`` says when ours wakes up.
"""

from __future__ import annotations

#: As negotiated, and the version of the protocol above.
NAME, VERSION = "nixl", 1


class Unusable(Exception):
    """NIXL cannot be used here. It becomes the reason of a downgrade."""
