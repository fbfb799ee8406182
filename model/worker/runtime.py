"""One worker: its model, its engine and who it is; what every service of it is built on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from baton.generation import Generation
from baton.identity import Identity, Role, new_instance_id
from baton.kv.trace import Tracer
from baton.kv.transport import Store
from baton.settings import WorkerSettings
from baton.tls.links import Links
from baton.tracing import tracing
from baton.v1 import worker_pb2
from model.engine.engine import Engine
from model.worker.census import Census
from model.worker.loading import LoadedModel
from model.worker.requests import to_sequence
from model.worker.sequences import LiveSequence, Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a worker says of itself that its engine does not know."""

    roles: frozenset[Role]  #: at the start
    #: By role. Those that are here are the roles that it can take.
    transports: Mapping[Role, Sequence[worker_pb2.TransportCapability]]
    served_name: str
    local_prefill: bool = False
    role_grace: float = 0.0  #: seconds, see RoleSettings; of no use to a worker of one role
    #: Asked for every status.
    prefill_decisions: Callable[[], Sequence[worker_pb2.PrefillDecision]] = tuple
    kv_pairings: Callable[[], Sequence[worker_pb2.KvPairing]] = tuple  #: likewise


class Runtime:
    """The engine, running, and what belongs to it. Build it on the loop; ``close`` it there.

    ``close`` also closes the runner, which it owns from here on. Raises TracingUnavailable.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: WorkerSettings,
        links: Links,
        census: Census | None = None,
    ) -> None:
        self.settings = settings
        self.links = links
        self.runner = loaded.runner
        self.vocab_size = loaded.vocab_size
        self.max_model_len = loaded.max_model_len
        self.beat = settings.beat
        self.tracer = Tracer(settings.kv_trace)
        self.identity = Identity(
            instance_id=new_instance_id(),
            compatibility=self.runner.compatibility,
            numerics_id=self.runner.numerics_id,
            deterministic=settings.deterministic,
        )
        self.census = census or Census()
        self.leaving = asyncio.Event()  #: set at the very end: streams of peers end themselves
        self.tracing = tracing(settings.otlp_endpoint, "worker", self.identity.instance_id)
        self.sequences = Sequences(self.runner, loaded.limits)
        self.engine.start()

    @property
    def engine(self) -> Engine:
        return self.sequences.engine

    @property
    def store(self) -> Store:
        return self.runner.store

    @contextmanager
    def sequence(
        self,
        generation: Generation,
        *,
        keep: bool = False,
        receive: bool = False,
        tell: bool = False,
    ) -> Iterator[LiveSequence]:
        """A sequence for ``generation`` while the body runs: see ``to_sequence`` and
        ``Sequences.open`` for what it raises."""
        request = to_sequence(
            generation,
            self.vocab_size,
            prefix_cache=self.settings.prefix_cache,
            keep=keep,
            receive=receive,
            tell=tell,
        )
        with self.sequences.open(request) as sequence:
            yield sequence

    @property
    def busy(self) -> bool:
        """Calls are open or sequences live."""
        load = self.engine.load()
        return bool(self.census.calls or load.running or load.waiting)

    def close(self) -> None:
        """Stop the engine after its running step, and free the device."""
        self.engine.stop()
        self.runner.close()
