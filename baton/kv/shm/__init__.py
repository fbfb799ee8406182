"""KV through shared memory, between two processes of one host.

    decode worker D                                   prefill worker P
    ---------------                                   ----------------
    connect: abstract Unix socket of P's instance ->  same uid? else refused
                                                  <-  Hello(slots) + a descriptor of the ring
    map it read-only, read the nonce in it
    Proof(nonce)                                  ->  the same? else refused
                                                  <-  Proven
    ... the link is kept; any number of hand-offs share it ...
    Read(reading, token of the Prefill call)      ->  opens that offer, once
                                                  <-  Filled(reading, slot, layer, range, bytes,
                                                             checksums)
    slot -> own pool, verified by Sink
    Consumed(slot)                                ->  the slot is free again
    Cancel(reading)                               ->  that reading ends
                                                  <-  Ended(reading, why; empty: all was sent)
    either: Broken(why), then closes; or is killed: the other reads the end of the stream

**One link per pair of instances**, one ring per link: ``--shm-bytes`` bounds what is in flight
between the two, however many hand-offs and however long their prompts. A slot is filled by one
copy out of P's pool and emptied by one copy into D's. D drains its slots whatever becomes of the
reading they belong to, so no hand-off can hold up another for good.

**Ownership.** The ring is anonymous memory (memfd) without a name: P writes, D can only read it
(the seals forbid any other writable mapping, and any change of size), its pages are reserved
before the first use, and the kernel frees them when both ends have let go, by closing or by
dying. Each end pins it for its device, where it has one that can (``Store.pin``). A link lives as
long as its socket. Either end closes it when the other is gone; nothing else ends it, no
time-out. Readings are owned by their Prefill call: P's end of the call closes the offer, D's
cancels the read.

**The same host is proved before the Prefill call**: D dials P by its instance id, and only a link
that is proven is offered as ``shm`` in PrefillStart. Otherwise the offer names the reason, P
chooses the next transport, and PrefillAccepted.transport.downgrades tells. A link that breaks the
protocol later fails its hand-offs as retryable, and that pair uses ``shm`` no more.

**Notifications are checked**: fixed length, a CRC-32, a sequence number per direction, a slot that
may be filled or consumed now; anything else breaks the link. What they say of layer and range is
checked by ``Sink``, as for every transport. Where checksums were agreed on, those of a slot's
blocks lie in the ring, behind the slots; ``Filled`` says how many they are.
"""

from __future__ import annotations

#: As negotiated, and the version of the protocol above.
NAME, VERSION = "shm", 2

#: Of the anonymous memory, as /proc/<pid>/fd shows it.
MEMORY_NAME = "baton-kv"
