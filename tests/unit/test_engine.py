"""Engine: the thread, its events, its failures; and, by random commands, all of it together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.errors import Draining, InternalError, KvOverflow, WorkerFull
from baton.sampling import SamplingSpec
from model.engine.engine import Engine
from model.engine.events import Event, SequenceFailed, SequencePreempted, TokenSampled
from model.engine.mock_runner import CostModel, MockRunner, expected_tokens
from model.engine.plan import StepPlan, StepResult
from model.engine.runner import LayerListener
from model.engine.sequence import Hold, Reservation, SequenceRequest
from model.engine.settings import SchedulerSettings
from tests.mock_engines import BLOCK, GREEDY, MOCK_CLASS, SteppedEngine, hand_off

PROMPT = tuple(range(10))
LIMITS = SchedulerSettings(
    block_size=BLOCK,
    max_model_len=256,
    max_tokens_per_step=512,
    chunk_tokens=512,
    max_running=8,
    prefill_order="fcfs",
)


# -- stepped by hand -----------------------------------------------------------------------


def test_block_size_must_be_the_runners() -> None:
    with pytest.raises(ValueError, match=r"block_size is 8.*runner's is 4"):
        Engine(MockRunner(MOCK_CLASS, 4), replace(LIMITS, block_size=8), print)


def test_prefill_here_decode_there() -> None:
    source, target = SteppedEngine(), SteppedEngine()
    wanted = target.reserve(PROMPT, receive=True)
    taken = source.reserve(PROMPT, keep=True, export=True)
    source.run_dry()
    hand_off(source, taken, target, wanted)
    source.release(taken.seq_id)
    (first,) = source.tokens(taken.seq_id)
    assert target.activate(wanted.seq_id, first) is None
    target.run_dry()
    expected = expected_tokens(PROMPT, GREEDY, MOCK_CLASS)
    assert [first, *target.tokens(wanted.seq_id)] == expected
    assert source.check_integrity(idle=True) == target.check_integrity(idle=True) == []
    again = target.reserve((*PROMPT, *expected), receive=True)
    assert again.hit_tokens == 16, "the answer's KV is cached: 17 tokens of it, 4 full blocks"


def test_load_tells_what_there_is_to_do() -> None:
    engine = SteppedEngine()
    assert engine.load().idle
    engine.submit(PROMPT)
    waiting = engine.reserve(tuple(range(50, 53)), receive=True)
    load = engine.load()
    assert (load.queued_tokens, load.running, load.waiting, load.steps) == (10, 0, 2, 0)
    assert (load.blocks.owned, load.blocks.free, load.idle) == (4, 28, False)
    engine.step()
    engine.step()
    load = engine.load()
    assert (load.queued_tokens, load.running, load.waiting, load.steps) == (0, 1, 1, 2)
    engine.cancel(waiting.seq_id)
    engine.run_dry()
    assert engine.load().idle and engine.check_integrity(idle=True) == []


def test_check_integrity_says_what_is_not_idle() -> None:
    engine = SteppedEngine()
    reserved = engine.reserve(PROMPT, receive=True)
    hold = engine.hold(reserved.seq_id)
    engine.cancel(reserved.seq_id)
    (line,) = engine.check_integrity(idle=True)
    assert "3 quarantined and 0 sequences live" in line
    engine.unhold(hold)
    assert engine.check_integrity(idle=True) == []


def test_drain_hands_back_and_resume_takes_again() -> None:
    engine = SteppedEngine()
    seq = engine.submit(PROMPT)
    engine.step()
    assert engine.drain(Draining("role change")) == 1
    engine.run_dry()
    (failed,) = engine.events
    assert isinstance(failed, SequenceFailed) and failed.seq_id == seq
    assert isinstance(failed.error, Draining) and failed.error.retryable
    with pytest.raises(Draining):
        engine.submit(PROMPT)
    engine.resume()
    engine.submit(PROMPT)
    assert engine.drain() == 0
    engine.run_dry()
    assert len(engine.events) == 1 + 8


class FailingRunner(MockRunner):
    """Raises, or fails one sequence, on the steps it is told to."""

    def __init__(self, num_blocks: int = 32) -> None:
        super().__init__(MOCK_CLASS, num_blocks)
        self.raises: dict[int, Exception] = {}
        self.fails: dict[int, int] = {}

    def run(self, plan: StepPlan, on_layer: LayerListener) -> StepResult:
        if plan.step in self.raises:
            raise self.raises[plan.step]
        result = super().run(plan, on_layer)
        if plan.step in self.fails:
            seq_id = self.fails[plan.step]
            result.tokens.pop(seq_id, None)
            result.errors[seq_id] = KvOverflow("layer 0 holds 1e5")
        return result


def engine_on(runner: MockRunner, emit: Callable[[Sequence[Event]], None]) -> Engine:
    return Engine(runner, LIMITS, emit)


def test_a_failing_step_ends_its_sequences_and_not_the_engine() -> None:
    runner, events = FailingRunner(), list[Event]()
    engine = engine_on(runner, events.extend)
    request = SequenceRequest(prompt_ids=PROMPT, spec=GREEDY)
    cause = RuntimeError("device lost")
    runner.raises = dict.fromkeys((1, 3, 4, 5), cause)
    engine.add(request)
    assert engine.step()
    (failed,) = events
    assert isinstance(failed, SequenceFailed) and isinstance(failed.error, InternalError)
    assert "device lost" in failed.error.message and failed.error.__cause__ is cause
    assert engine.check_integrity(idle=True) == []
    engine.add(request)
    assert engine.step() and isinstance(events[-1], TokenSampled), "the engine goes on"
    assert engine.step() and not engine.load().failed
    for _ in range(2):
        engine.add(request)
        engine.step()
    assert engine.load().failed, "three failures in a row"
    assert engine.load().failed_steps == 4
    engine.add(request)
    engine.step()
    assert not engine.load().failed


def test_an_overflow_ends_one_sequence_with_its_own_error() -> None:
    runner, events = FailingRunner(), list[Event]()
    engine = engine_on(runner, events.extend)
    bad = engine.add(SequenceRequest(prompt_ids=PROMPT, spec=GREEDY)).seq_id
    good = engine.add(SequenceRequest(prompt_ids=PROMPT, spec=GREEDY)).seq_id
    runner.fails = {1: bad}
    while engine.step():
        pass
    assert isinstance(events[0], SequenceFailed) and isinstance(events[0].error, KvOverflow)
    ids = [e.token_id for e in events if isinstance(e, TokenSampled) and e.seq_id == good]
    assert ids == expected_tokens(PROMPT, GREEDY, MOCK_CLASS)


# -- on its thread -------------------------------------------------------------------------


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    engine.start()
    try:
        yield engine
    finally:
        engine.stop(timeout_s=60)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


def test_the_thread_sleeps_wakes_and_stops() -> None:
    events: list[Event] = []
    with running(engine_on(MockRunner(MOCK_CLASS, 32), events.extend)) as engine:
        for _ in range(3):
            engine.add(SequenceRequest(prompt_ids=PROMPT, spec=GREEDY))
            wait_for(lambda: engine.load().idle)
        wait_for(lambda: len(events) == 24)
        assert engine.check_integrity(idle=True) == []
        with pytest.raises(RuntimeError, match="started before"):
            engine.start()
    engine.stop()


def test_commands_do_not_wait_for_the_runner() -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Stuck(MockRunner):
        def run(self, plan: StepPlan, on_layer: LayerListener) -> StepResult:
            inside.set()
            assert go_on.wait(60)
            return super().run(plan, on_layer)

    events: list[Event] = []
    with running(engine_on(Stuck(MOCK_CLASS, 32), events.extend)) as engine:
        seq = engine.add(SequenceRequest(prompt_ids=PROMPT, spec=GREEDY)).seq_id
        assert inside.wait(60)
        started = time.monotonic()
        other = engine.add(SequenceRequest(prompt_ids=PROMPT, spec=GREEDY, receive=True))
        engine.hold(other.seq_id)
        engine.cancel(seq)
        assert engine.load().blocks.quarantined == 3, "the running step uses them"
        assert engine.check_integrity() == []
        with pytest.raises(TimeoutError):
            engine.stop(timeout_s=0.01)
        assert time.monotonic() - started < 30
        go_on.set()
    assert events == []
    assert engine.load().blocks.quarantined == 0


def test_a_defect_in_the_engine_ends_every_sequence_instead_of_hanging() -> None:
    events: list[Event] = []

    def emit(batch: Sequence[Event]) -> None:
        if any(isinstance(e, TokenSampled) for e in batch):
            raise OSError("the loop is closed")
        events.extend(batch)

    with running(engine_on(MockRunner(MOCK_CLASS, 32), emit)) as engine:
        seq = engine.add(SequenceRequest(prompt_ids=PROMPT, spec=GREEDY)).seq_id
        wait_for(lambda: events)
        (failed,) = events
        assert isinstance(failed, SequenceFailed) and failed.seq_id == seq
        assert engine.load().failed and engine.check_integrity(idle=True) == []
        engine.resume()
        with pytest.raises(Draining):
            engine.add(SequenceRequest(prompt_ids=PROMPT, spec=GREEDY))


def test_many_threads_of_commands() -> None:
    """Adds and cancels race with steps; nothing leaks and every stream is right."""
    tokens: dict[int, list[int]] = {}
    done: set[int] = set()

    def emit(batch: Sequence[Event]) -> None:
        for event in batch:
            assert isinstance(event, TokenSampled)
            tokens.setdefault(event.seq_id, []).append(event.token_id)
            if event.finish_reason:
                done.add(event.seq_id)

    runner = MockRunner(MOCK_CLASS, 64, cost=CostModel(step_s=0.0005))
    added: dict[int, tuple[int, ...]] = {}
    cancelled: set[int] = set()
    with running(engine_on(runner, emit)) as engine:

        def client(number: int) -> None:
            for turn in range(10):
                prompt = (number % 2, *range(turn % 3, 9))
                try:
                    seq = engine.add(SequenceRequest(prompt_ids=prompt, spec=GREEDY)).seq_id
                except WorkerFull:
                    time.sleep(0.002)
                    continue
                added[seq] = prompt
                if turn % 3 == 0:
                    cancelled.add(seq)
                    engine.cancel(seq)
                time.sleep(0.001)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: done >= added.keys() - cancelled)
        assert engine.check_integrity(idle=True) == []
    for seq, prompt in added.items():
        expected = expected_tokens(prompt, GREEDY, MOCK_CLASS)
        got = tokens.get(seq, [])
        assert got == (expected if seq not in cancelled else expected[: len(got)])


# -- everything at once --------------------------------------------------------------------


@dataclass
class Stream:
    """One client's request, over all its attempts, as a gateway would follow it."""

    prompt: tuple[int, ...]
    spec: SamplingSpec
    remote: bool
    priority: int
    received: list[int] = field(default_factory=list)
    decode: Reservation | None = None  #: its reservation on the decode engine
    prefill: Reservation | None = None  #: and, while KV is on its way, on the prefill engine
    first: int | None = None  #: sampled there
    incoming: Hold | None = None
    outgoing: Hold | None = None


class EnginesMachine(RuleBasedStateMachine):
    """A prefill and a decode engine with small pools, and streams that are added, handed off,
    cancelled, preempted, replayed and held, in any order. Whatever happens, each stream gets
    exactly the tokens of ``expected_tokens``, the books balance, and at the end nothing is left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prefill = SteppedEngine(num_blocks=12, chunk_tokens=3)
        self.decode = SteppedEngine(num_blocks=9, max_running=4, max_tokens_per_step=7)
        self.seen = {id(self.prefill): 0, id(self.decode): 0}
        self.streams: list[Stream] = []
        self.orphans: list[tuple[SteppedEngine, Hold, Sequence[int]]] = []

    # -- what a worker and a gateway do with a stream --

    def place(self, stream: Stream) -> None:
        """Try attempt k + 1; a full worker leaves it waiting."""
        request = SequenceRequest(
            prompt_ids=stream.prompt,
            generated_ids=tuple(stream.received),
            spec=stream.spec,
            priority=stream.priority,
            receive=stream.remote,
        )
        try:
            stream.decode = self.decode.add(request)
            if stream.remote:
                self.call_prefill(stream)
        except WorkerFull:
            self.drop(stream)

    def call_prefill(self, stream: Stream) -> None:
        assert stream.decode is not None
        request = SequenceRequest(
            prompt_ids=stream.prompt,
            generated_ids=tuple(stream.received),
            spec=stream.spec,
            priority=stream.priority,
            keep=True,
            export=True,
        )
        stream.prefill = self.prefill.add(request)
        stream.outgoing = self.prefill.hold(stream.prefill.seq_id)
        stream.incoming = self.decode.hold(stream.decode.seq_id)

    def end_call(self, stream: Stream, complete: bool = False) -> None:
        """The Prefill call is over; its transfers end later, by ``end_transfer``."""
        if stream.prefill is not None:
            self.prefill.release(stream.prefill.seq_id)
        if stream.outgoing is not None:
            self.orphans.append((self.prefill, stream.outgoing, ()))
        if stream.incoming is not None:
            assert stream.decode is not None
            written = stream.incoming.blocks[stream.decode.hit_tokens // BLOCK :]
            self.orphans.append((self.decode, stream.incoming, () if complete else written))
        stream.prefill = stream.outgoing = stream.incoming = stream.first = None

    def drop(self, stream: Stream) -> None:
        """The attempt is over, whatever the reason."""
        self.end_call(stream)
        if stream.decode is not None:
            self.decode.cancel(stream.decode.seq_id)
        stream.decode = None

    def take_events(self) -> None:
        for engine in (self.prefill, self.decode):
            fresh = engine.events[self.seen[id(engine)] :]
            self.seen[id(engine)] = len(engine.events)
            for event in fresh:
                self.take(engine, event)

    def take(self, engine: SteppedEngine, event: Event) -> None:
        here = [
            s
            for s in self.streams
            for reserved in [s.prefill if engine is self.prefill else s.decode]
            if reserved is not None and reserved.seq_id == event.seq_id
        ]
        if not here:
            return  # cancelled meanwhile
        (stream,) = here
        if isinstance(event, SequencePreempted):
            self.drop(stream)
        elif isinstance(event, TokenSampled):
            assert event.index == len(stream.received)
            stream.received.append(event.token_id)
            if engine is self.prefill:
                stream.first = event.token_id
            elif event.finish_reason is not None:
                stream.decode = None

    def deliver(self, stream: Stream) -> None:
        """The last byte of KV arrives."""
        assert stream.decode and stream.prefill and stream.first is not None
        hand_off(self.prefill, stream.prefill, self.decode, stream.decode)
        ended = self.decode.activate(stream.decode.seq_id, stream.first) is not None
        self.end_call(stream, complete=True)
        if ended:
            stream.decode = None

    def end_transfer(self, index: int) -> None:
        """Bytes stop moving; the last ones of a broken transfer land only now."""
        engine, hold, written = self.orphans.pop(index)
        engine.runner.store.pool[:, list(written)] = 0xEE
        engine.unhold(hold)

    def finished(self, stream: Stream) -> bool:
        return len(stream.received) == stream.spec.max_tokens

    # -- rules --

    @precondition(lambda self: sum(not self.finished(s) for s in self.streams) < 8)
    @rule(
        family=st.integers(0, 1),
        lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4),
        most=st.integers(1, 16),
        seed=st.sampled_from([None, 1]),
        remote=st.booleans(),
        priority=st.sampled_from([0, 0, 1]),
    )
    def submit(
        self,
        family: int,
        lengths: list[int],
        most: int,
        seed: int | None,
        remote: bool,
        priority: int,
    ) -> None:
        """A burst of prompts, each a prefix of one of two, so that they share blocks."""
        temperature = 0.0 if seed is None else 1.0
        spec = SamplingSpec(temperature=temperature, seed=seed or 0, max_tokens=most)
        for length in lengths:
            prompt = tuple(range(family, family + length))
            self.streams.append(Stream(prompt, spec, remote, priority))
            self.place(self.streams[-1])

    @rule(times=st.integers(1, 6))
    def step_decode(self, times: int) -> None:
        for _ in range(times):
            self.decode.step()
            self.take_events()

    @rule(times=st.integers(1, 4))
    def step_prefill(self, times: int) -> None:
        for _ in range(times):
            self.prefill.step()
            self.take_events()

    def pick(self, data: st.DataObject, which: Callable[[Stream], object]) -> Stream | None:
        fitting = [s for s in self.streams if which(s)]
        return data.draw(st.sampled_from(fitting)) if fitting else None

    @rule(data=st.data(), decode=st.booleans())
    def cancel_in_mid_step(self, data: st.DataObject, decode: bool) -> None:
        """One stream is cancelled while an engine computes."""
        engine = self.decode if decode else self.prefill

        def cancel() -> None:
            engine.runner.during = None
            self.cancel(data)
            self.books_balance()

        engine.runner.during = cancel
        engine.step()
        engine.runner.during = None
        self.take_events()

    def cancel(self, data: st.DataObject) -> None:
        if stream := self.pick(data, lambda s: s.decode is not None):
            self.drop(stream)
            self.streams.remove(stream)

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        if stream := self.pick(data, lambda s: s.first is not None):
            self.deliver(stream)

    @rule(data=st.data())
    def cancel_one(self, data: st.DataObject) -> None:
        self.cancel(data)

    @rule(data=st.data(), fall_back=st.booleans())
    def lose_prefill(self, data: st.DataObject, fall_back: bool) -> None:
        """The prefill worker dies: local prefill if nothing was sampled yet, else a replay."""
        stream = self.pick(data, lambda s: s.prefill is not None)
        if stream is None:
            return
        assert stream.decode is not None
        if stream.first is not None or not fall_back:
            self.drop(stream)
            return
        try:
            self.decode.compute_here(stream.decode.seq_id)
        except WorkerFull:
            self.drop(stream)
        else:
            self.end_call(stream)

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        if stream := self.pick(data, lambda s: s.decode is None and not self.finished(s)):
            self.place(stream)

    @precondition(lambda self: self.orphans)
    @rule(data=st.data())
    def end_orphan(self, data: st.DataObject) -> None:
        self.end_transfer(data.draw(st.integers(0, len(self.orphans) - 1)))

    @invariant()
    def books_balance(self) -> None:
        for engine in (self.prefill, self.decode):
            assert engine.check_integrity() == []

    @invariant()
    def no_block_outlives_what_it_builds_on(self) -> None:
        """Of a chain the deepest block is evicted first, so whatever is cached can be found."""
        for engine in (self.prefill, self.decode):
            memory = engine._scheduler._memory
            for stream in self.streams:
                tokens = (*stream.prompt, *stream.received)
                keys = memory._prefix.keys(memory._prefix.root(b""), tokens)
                there = [memory._pool.find(key) is not None for key in keys]
                assert there == sorted(there, reverse=True), "a block without its parent"

    def teardown(self) -> None:
        """Every stream that was not cancelled can be brought to its end: as long as one is not,
        tokens keep coming."""
        received, rounds_without = -1, 0
        while not all(map(self.finished, self.streams)):
            self.work_on()
            total = sum(len(stream.received) for stream in self.streams)
            rounds_without = 0 if total > received else rounds_without + 1
            received = total
            assert rounds_without < 40, self.decode.load()
        for stream in self.streams:
            assert stream.received == expected_tokens(stream.prompt, stream.spec, MOCK_CLASS)
        while self.orphans:
            self.end_transfer(-1)
        for engine in (self.prefill, self.decode):
            engine.run_dry()
            assert engine.check_integrity(idle=True) == []

    def work_on(self) -> None:
        """What workers and gateway do when nothing else goes wrong."""
        while self.orphans:
            self.end_transfer(-1)
        for stream in self.streams:
            if stream.decode is None and not self.finished(stream):
                self.place(stream)
        for engine in (self.prefill, self.decode):
            engine.step()
            self.take_events()
        for stream in self.streams:
            if stream.first is not None:
                self.deliver(stream)


EnginesMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    # No shrinking: it takes minutes here, longer than a test may.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
TestEngines = EnginesMachine.TestCase
