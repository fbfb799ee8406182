"""``python -m tests.gpu.reader ADDRESS TRANSPORT DEVICE TOKENS ROUNDS``: one end of hand-offs.

Has the prefill worker at ADDRESS compute fresh prompts of so many tokens, and in every second
call reads their KV into a pool on DEVICE. Prints a line of JSON: the seconds that the prompts were
computed in, with the KV read (``read``) and without (``unread``), and the bytes of one reading.
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
import torch

from baton import channels, wire
from baton.deadlines import UNLIMITED
from baton.generation import AttemptKey, Generation
from baton.identity import Identity, new_instance_id
from baton.kv.connections import Connections
from baton.kv.framing import Shape
from baton.kv.grpc_transport import GrpcReader
from baton.kv.shm.reader import ShmReader
from baton.kv.transport import Reader, Sink
from baton.liveness import Beat
from baton.sampling import SamplingSpec
from baton.v1 import worker_pb2, worker_pb2_grpc
from decode_worker.prefill_client import PrefillClient, Target
from model.cache.cuda_store import CudaStore
from model.cache.pool import KvPool
from model.cache.store import HostStore

WARM_UP = 2


async def identity_of(address: str) -> Identity:
    async with channels.connect(address, shared=False) as channel:
        request = worker_pb2.WatchRequest(
            identity=wire.identity_to_wire(Identity(new_instance_id(), None))
        )
        call = worker_pb2_grpc.WorkerServiceStub(channel).Watch(request)
        status = await call.read()
        call.cancel()
        return wire.identity_from_wire(status.identity)


class Caller:
    """Calls one prefill worker, and receives into a pool of as many blocks as a prompt takes."""

    def __init__(self, address: str, there: Identity, transport: str, device: str) -> None:
        assert there.compatibility is not None
        self._kv = there.compatibility
        self._target = Target(address, there.instance_id)
        self._device = torch.device(device)
        self._me = Identity(new_instance_id(), there.compatibility, there.numerics_id)
        self._transport = transport

    async def measure(self, tokens: int, rounds: int) -> dict[str, object]:
        pool = KvPool(
            layers=self._kv.layers,
            num_blocks=-(-tokens // self._kv.block_size),
            block_size=self._kv.block_size,
            kv_heads=self._kv.kv_heads,
            head_dim=self._kv.head_size,
            device=self._device,
        )
        store = CudaStore(pool) if pool.host is None else HostStore(pool.host)
        connections, shm = Connections(), ShmReader(pin=store.pin)
        reader: Reader = shm if self._transport == "shm" else GrpcReader(connections)
        client = PrefillClient(self._me, Beat(1.0, 3), connections, [reader])
        rng = np.random.default_rng(0)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        nbytes = 0
        for turn in range(2 * (WARM_UP + rounds)):
            read = turn % 2 == 0
            prompt = tuple(rng.integers(0, 256, tokens).tolist())
            spec = SamplingSpec(temperature=0.0, max_tokens=2)
            asked = Generation(AttemptKey(str(turn), 0), prompt, (), spec, UNLIMITED)
            start = 0 if read else tokens
            kv = self._kv
            shape = Shape(kv.layers, kv.block_size, kv.block_bytes, start, tokens)
            sink = Sink(shape, store, list(range(pool.num_blocks)))
            async with client.call(self._target, asked, start) as call:
                accepted = await call.accepted
                assert accepted.transport.name == self._transport, accepted.transport
                if read:
                    await reader.read(call.terms(accepted), sink)
                    nbytes = sink.bytes
                await call.first_token
                call.received(sink.bytes)
                await call.done
            if turn >= 2 * WARM_UP:
                seconds[read].append(call.timings.prefill)
        await shm.close()
        await connections.close()
        if isinstance(store, CudaStore):
            store.close()
        return {"read": seconds[True], "unread": seconds[False], "bytes": nbytes}


async def main(address: str, transport: str, device: str, tokens: int, rounds: int) -> None:
    caller = Caller(address, await identity_of(address), transport, device)
    print(json.dumps(await caller.measure(tokens, rounds)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])))
