"""What a decode worker keeps of its pairs: agreed, counted, measured, forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from baton.errors import (
    BatonError,
    DeadlineExceeded,
    HandoffFailed,
    IncompatiblePeer,
    Preempted,
    PrefillLost,
)
from baton.kv.checksums import Policy
from baton.kv.ledger import GONE_AFTER, KEPT, Ledger
from baton.kv.transport import Terms
from baton.metrics.hand_offs import HandOffMetrics
from baton.v1 import kv_pb2, worker_pb2
from tests.shm import HandOff


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Pairs:
    """A ledger, and what it is told."""

    def __init__(self, mode: str = "auto") -> None:
        self.clock, self.connected = Clock(), {"a"}
        self.registry = CollectorRegistry()
        self.ledger = Ledger(
            Policy(mode, 1e9),  # type: ignore[arg-type]
            lambda: self.connected,
            stripes={"grpc": 3},
            metrics=HandOffMetrics(self.registry),
            clock=self.clock,
        )

    def hand_off(
        self,
        instance_id: str = "a",
        address: str = "p:1",
        *,
        nbytes: int = 1000,
        seconds: float = 1.0,
        error: BatonError | None = None,
        transport: str = "shm",
        downgrades: Sequence[str] = (),
    ) -> None:
        checksums = self.ledger.wants_checksums(instance_id)
        choice = kv_pb2.TransportChoice(name=transport, downgrades=downgrades, checksums=checksums)
        sink = HandOff(8).sink
        with self.ledger.hand_off(address, instance_id) as under_way:
            under_way.agreed(Terms(address, instance_id, b"", choice), sink)
            sink.bytes = nbytes
            if error is not None:
                raise error
            under_way.complete(seconds, seconds / 2)

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"baton_kv_{name}", labels) or 0.0

    def only(self) -> worker_pb2.KvPairing:
        (pairing,) = self.ledger.pairings()
        return pairing

    def kept(self) -> list[str]:
        return [pairing.instance_id for pairing in self.ledger.pairings()]


def test_what_arrived_is_counted_and_measured() -> None:
    pairs = Pairs()
    pairs.hand_off(nbytes=1000, seconds=0.5)
    pairs.hand_off(nbytes=0, seconds=0.0)  # all of it was cached: no hand-off
    pairing = pairs.only()
    assert (pairing.address, pairing.transport, pairing.stripes) == ("p:1", "shm", 1)
    assert (pairing.complete, pairing.failed, pairing.bytes) == (1, 0, 1000)
    assert pairing.bytes_per_s == 2000
    assert pairs.counted("handoffs_total", transport="shm", outcome="complete") == 1
    assert pairs.counted("transfer_bytes_total", transport="shm") == 1000
    assert pairs.counted("transfer_seconds_sum", transport="shm") == 0.5
    assert pairs.counted("transfer_tail_seconds_sum", transport="shm") == 0.25


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (PrefillLost("gone"), 1),
        (HandoffFailed("a gap"), 1),
        (DeadlineExceeded("transfer", 1.0), 1),
        (DeadlineExceeded("prefill", 1.0), 0),
        (Preempted("ours"), 0),
    ],
)
def test_only_what_the_pair_is_to_blame_for_has_failed(error: BatonError, failed: int) -> None:
    pairs = Pairs()
    with pytest.raises(type(error)):
        pairs.hand_off(nbytes=300, error=error)
    pairing = pairs.only()
    assert (pairing.complete, pairing.failed, pairing.bytes) == (0, failed, 300)
    assert pairing.bytes_per_s == 0
    assert pairs.counted("handoffs_total", transport="shm", outcome="failed") == failed
    assert pairs.counted("transfer_bytes_total", transport="shm") == 300


def test_what_was_never_agreed_on_is_no_hand_off() -> None:
    pairs = Pairs()
    with pytest.raises(PrefillLost), pairs.ledger.hand_off("p:1", "a"):
        raise PrefillLost("nobody answers")
    assert pairs.ledger.pairings() == []


def test_an_end_after_the_last_byte_is_none_of_the_hand_offs() -> None:
    pairs = Pairs()
    choice = kv_pb2.TransportChoice(name="grpc")
    with pytest.raises(PrefillLost), pairs.ledger.hand_off("p:1", "a") as under_way:
        sink = HandOff(8).sink
        under_way.agreed(Terms("p:1", "a", b"", choice), sink)
        sink.bytes = 10
        under_way.complete(1.0, 0.5)
        raise PrefillLost("it left")
    pairing = pairs.only()
    assert (pairing.complete, pairing.failed, pairing.bytes) == (1, 0, 10)
    assert pairing.stripes == 3


def test_the_choice_is_said_at_first_and_when_it_changes() -> None:
    pairs, why = Pairs("off"), "shm: no memory"
    with capture_logs() as logs:
        for _ in range(3):
            pairs.hand_off()
        for _ in range(3):
            pairs.hand_off(transport="grpc", downgrades=[why])
    assert [(line["name"], line["log_level"], line["passed_over"]) for line in logs] == [
        ("shm", "info", []),
        ("grpc", "warning", [why]),
    ]
    pairing = pairs.only()
    assert (pairing.transport, list(pairing.downgrades)) == ("grpc", [why])
    assert pairing.complete == 6


def test_slow_pairs_get_checksums_once_they_are_measured() -> None:
    pairs = Pairs()
    assert not pairs.ledger.wants_checksums("a")
    pairs.hand_off(nbytes=10**6, seconds=1.0)
    assert pairs.ledger.wants_checksums("a")
    assert not pairs.ledger.wants_checksums("b")
    pairs.hand_off(nbytes=10**9, seconds=1.0)
    assert not pairs.ledger.wants_checksums("a")
    pairs.hand_off(transport="grpc", nbytes=10**6, seconds=1.0)
    assert pairs.ledger.wants_checksums("a"), "another transport is measured afresh"


def test_a_switch_of_checksums_is_said_once_with_its_reason() -> None:
    pairs = Pairs()  # sums 1 GB a second: worth it below 10 MB/s
    with capture_logs() as logs:
        for nbytes in (10**6, 10**6, 10**6, 10**9, 10**6):
            pairs.hand_off(nbytes=nbytes, seconds=1.0)
        pairs.hand_off(transport="grpc")  # off again, which is in the line of the new transport
    switches = [line for line in logs if line["event"] == "kv checksums"]
    assert [line["on"] for line in switches] == [True, False]
    assert [line["mb_per_s"] < line["on_below"] == 10 for line in switches] == [True, False]


def test_a_pair_that_cannot_agree_is_shown_with_the_reason() -> None:
    pairs = Pairs()
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(IncompatiblePeer), pairs.ledger.hand_off("p:1", "a"):
                raise IncompatiblePeer("no KV transport in common")
    pairing = pairs.only()
    assert (pairing.address, pairing.instance_id, pairing.transport) == ("p:1", "a", "")
    assert (list(pairing.downgrades), pairing.failed) == (["no KV transport in common"], 2)
    assert [(line["name"], line["log_level"]) for line in logs] == [("none", "warning")]
    pairs.hand_off()
    assert (pairs.only().transport, pairs.only().complete) == ("shm", 1)


def test_instances_that_are_gone_fall_out() -> None:
    pairs = Pairs()
    pairs.hand_off("a", "p:1")
    pairs.hand_off("b", "p:2")
    pairs.clock.now += GONE_AFTER - 1
    assert pairs.kept() == ["a", "b"]
    pairs.clock.now += 2
    assert pairs.kept() == ["a"], "there is no connection to b"
    pairs.connected.clear()
    pairs.hand_off("a", "p:1")
    assert pairs.kept() == ["a"], "used just now"
    pairs.hand_off("restarted", "p:1")
    assert pairs.kept() == ["restarted"]


def test_no_more_than_so_many_are_kept() -> None:
    pairs = Pairs()
    for number in range(KEPT):
        pairs.hand_off(str(number), f"p:{number}")
    pairs.hand_off("0", "p:0")
    pairs.hand_off("new", "p:new")
    kept = pairs.kept()
    assert len(kept) == KEPT
    assert "1" not in kept and {"0", "new"} <= set(kept), "the least recently used has gone"
