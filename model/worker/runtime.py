"""One worker: its model, its engine and who it is; what every service of it is built on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from baton.generation import Generation
from baton.grammars import Constraint, Grammars
from baton.identity import Identity, Role, new_instance_id
from baton.kv.trace import Tracer
from baton.kv.transport import Store
from baton.metrics.process import process_registry
from baton.metrics.server import metrics_server
from baton.settings import WorkerSettings
from baton.tls.links import Links
from baton.tracing import tracing
from baton.v1 import worker_pb2
from model.engine.engine import Engine
from model.weights.hub import resolve_model
from model.worker.census import Census
from model.worker.loading import LoadedModel
from model.worker.metrics import WorkerMetrics
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

    ``close`` also closes the runner, which it owns from here on. Raises TracingUnavailable, and
    OSError when the metrics port is taken.
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
        self.metrics = WorkerMetrics(process_registry("worker", links))
        self.sequences = Sequences(self.runner, loaded.limits, self.metrics.step)
        self._scraped = ExitStack()
        #: host:port of ``/metrics``; empty where there is none.
        self.metrics_address = self._scraped.enter_context(
            metrics_server(settings.host, settings.metrics_port, self.metrics.registry)
        )
        self._grammars = Grammars(self._tokenizer, self.vocab_size, settings.grammar_limits)
        self.engine.start()

    @property
    def engine(self) -> Engine:
        return self.sequences.engine

    @property
    def store(self) -> Store:
        return self.runner.store

    async def constraint(self, generation: Generation) -> Constraint | None:
        """What holds the answer, where it is: compiled off the loop, and before anything is
        reserved. Raises what ``Grammars.begin`` raises."""
        spec = generation.sampling
        if not spec.grammar:
            return None
        return await self._grammars.begin(spec.grammar, spec.eos_ids, generation.generated_ids)

    @contextmanager
    def sequence(
        self,
        generation: Generation,
        constraint: Constraint | None,
        *,
        keep: bool = False,
        receive: bool = False,
        tell: bool = False,
    ) -> Iterator[LiveSequence]:
        """A sequence for ``generation`` while the body runs, held by its ``constraint``: see
        ``to_sequence`` and ``Sequences.open`` for what it raises."""
        request = to_sequence(
            generation,
            self.vocab_size,
            constraint,
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
        """Answer no more scrapes, stop the engine after its running step, and free the device."""
        self._scraped.close()
        self._grammars.close()
        self.engine.stop()
        self.runner.close()

    def _tokenizer(self) -> str:
        """Raises OSError, or CheckpointError for a hub id that is no longer there."""
        path = resolve_model(self.settings.model) / "tokenizer.json"
        return path.read_text(encoding="utf-8")
