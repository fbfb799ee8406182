"""Which prompts a step computes when some are read too slowly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton.sampling import SamplingSpec
from model.engine.compute_queue import ComputeQueue
from model.engine.costs import StepCosts
from model.engine.order import arrival
from model.engine.sequence import Phase, Sequence, SequenceRequest
from model.engine.settings import SchedulerSettings

STEP, CHUNK, SEQUENCES = 12, 8, 3


class Bench:
    """A queue, and its sequences by id; one that is computed leaves."""

    def __init__(self) -> None:
        settings = SchedulerSettings(
            block_size=4,
            max_model_len=1000,
            max_tokens_per_step=STEP,
            chunk_tokens=CHUNK,
            max_running=SEQUENCES,
            prefill_order="fcfs",
        )
        self.queue = ComputeQueue(settings, StepCosts(), lambda: 0.0)
        self.waiting: dict[int, Sequence] = {}
        self._next_id = 1

    def submit(self, tokens: int, priority: int = 0) -> int:
        request = SequenceRequest(
            prompt_ids=(7,) * tokens, spec=SamplingSpec(), priority=priority, keep=True
        )
        seq = Sequence(
            seq_id=self._next_id,
            request=request,
            block_size=4,
            blocks=list(range(-(-tokens // 4))),
            cached=0,
            computed=0,
            keys=[],
            published=0,
            promised=0,
            rank=(arrival(0, priority), self._next_id),
            phase=Phase.PREFILLING,
            created_s=0.0,
        )
        self._next_id += 1
        self.queue.add(seq)
        self.waiting[seq.seq_id] = seq
        return seq.seq_id

    def lag(self, seq_id: int, behind: bool) -> None:
        if seq_id in self.waiting:
            self.queue.lag(self.waiting[seq_id], behind)

    def step(self) -> dict[int, int]:
        """Tokens computed, by sequence, in the order of the step."""
        chunks = {part.seq_id: len(part.token_ids) for part in self.queue.chunks(0)}
        for seq_id, tokens in chunks.items():
            seq = self.waiting[seq_id]
            self.queue.computed(seq, tokens)
            if not seq.missing:
                self.queue.remove(seq)
                del self.waiting[seq_id]
        assert self.queue.check() == []
        return chunks


@given(st.data())
def test_every_step_is_full_and_nobody_is_passed_over_by_one_that_lags(data: st.DataObject) -> None:
    bench = Bench()
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["submit", "lag", "step"])):
            case "submit":
                bench.submit(data.draw(st.integers(1, 30)), data.draw(st.integers(0, 1)))
            case "lag" if bench.waiting:
                seq_id = data.draw(st.sampled_from(sorted(bench.waiting)))
                bench.lag(seq_id, data.draw(st.booleans()))
            case "step":
                before = list(bench.waiting.values())
                wants = {seq.seq_id: min(CHUNK, seq.missing) for seq in before}
                order = [s.seq_id for s in sorted(before, key=lambda s: (s.lagging, s.rank))]
                left, expected = STEP, dict[int, int]()
                for seq_id in order[:SEQUENCES]:
                    if left:
                        expected[seq_id] = min(left, wants[seq_id])
                        left -= expected[seq_id]
                assert list(bench.step().items()) == list(expected.items())


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=12))
def test_who_never_catches_up_is_computed_all_the_same(prompts: list[tuple[int, bool]]) -> None:
    bench = Bench()
    for tokens, behind in prompts:
        bench.lag(bench.submit(tokens), behind)
    steps = 0
    while bench.waiting:
        assert sum(bench.step().values()) > 0
        steps += 1
    assert steps <= sum(-(-tokens // CHUNK) for tokens, _ in prompts), "the first gets a chunk"


def test_alone_it_goes_on() -> None:
    bench = Bench()
    slow = bench.submit(20)
    bench.lag(slow, True)
    assert [bench.step() for _ in range(3)] == [{slow: 8}, {slow: 8}, {slow: 4}]


def test_others_go_first_and_it_gets_what_they_leave() -> None:
    bench = Bench()
    slow = bench.submit(40, priority=1)
    assert bench.step() == {slow: 8}
    bench.lag(slow, True)
    quick = bench.submit(10)
    assert bench.step() == {quick: 8, slow: 4}
    assert bench.step() == {quick: 2, slow: 8}


def test_under_endless_load_it_is_back_as_soon_as_its_reader_is() -> None:
    bench = Bench()
    slow = bench.submit(40)
    bench.lag(slow, True)
    for _ in range(50):  # newcomers fill every step
        bench.submit(8), bench.submit(8)
        assert slow not in bench.step()
    bench.lag(slow, False)
    assert next(iter(bench.step())) == slow, "its place is that of its arrival"
