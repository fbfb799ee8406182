"""Placement policies: what each prefers, and what none may break."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.identity import CompatibilityClass, Identity, Role
from baton.prefix_keys import PrefixKeys, pack_digests
from baton.settings import PlacementName
from baton.v1 import worker_pb2
from gateway.booking import Booking
from gateway.caches import CacheIndex, Prefix
from gateway.fleet import Health, KvPairing, Links, Load, Report, Worker
from gateway.placement import Need, Place, Placement
from gateway.policies import LIVE_TOKENS, WIDTH, Policies, Weights, policies
from gateway.roster import Roster

CLASS = CompatibilityClass("m", layers=2, kv_heads=1, head_size=8, block_size=16)
KEYS = PrefixKeys(CLASS.layout, CLASS.block_size)
NAMES = get_args(PlacementName)
PREFILL, DECODE = frozenset({Role.PREFILL}), frozenset({Role.DECODE})


def worker(name: str, roles: frozenset[Role] = PREFILL, **fields: Any) -> Worker:
    load = {"blocks_free": 1000} | {
        key: fields.pop(key) for key in Load.__dataclass_fields__ if key in fields
    }
    health = fields.pop("health", Health.HEALTHY)
    values: dict[str, Any] = {
        "identity": Identity(name, CLASS),
        "roles": roles,
        "local_prefill": False,
        "model": "m",
        "max_model_len": 10_000,
        "vocab_size": 10,
        "load": Load(**load),
        "transports": (),
        "draining": False,
    }
    return Worker(f"{name}:1", Report(**values | fields), health)


def decode(name: str = "d", **fields: Any) -> Worker:
    return worker(name, DECODE, **fields)


def prompt(number: int, tokens: int = 160) -> list[int]:
    """Another one for each number, from its first token on."""
    return [number, *range(tokens - 1)]


def caches(index: CacheIndex | None, holder: Worker, *prompts: list[int]) -> None:
    assert index is not None
    keys = {key for one in prompts for key in KEYS.keys(KEYS.root(b""), one)}
    index.apply(holder, worker_pb2.CacheChanges(whole=True, entered=pack_digests(keys)))


class Fleet:
    """Workers, and a placement by one policy."""

    def __init__(self, name: str, *workers: Worker, seed: int = 0, **weights: float) -> None:
        given = {"cache": 1.0, "load": 1.0, "transfer": 1.0} | weights
        self.policies: Policies = policies(name, Weights(**given))
        self.roster = Roster(workers)
        self._placement = Placement(random.Random(seed), self.policies)

    def place(self, tokens: list[int], session: str = "", salt: bytes = b"", **need: Any) -> Place:
        wanted = {
            "model": "m",
            "tokens": len(tokens),
            "longest": len(tokens) + 10,
            "prefix": Prefix(tokens, salt, session),
        }
        place = self._placement.choose(self.roster, Need(**wanted | need))
        assert place is not None
        return place

    def prefill(self, tokens: list[int], **need: Any) -> str:
        place = self.place(tokens, **need)
        assert place.prefill is not None
        return place.prefill.instance_id


# -- every policy ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=20)
@given(count=st.integers(2, 2 * WIDTH), seed=st.integers(0, 99))
def test_equal_workers_get_about_as_much(name: str, count: int, seed: int) -> None:
    workers = [worker(f"p{i}", blocks_free=10**6) for i in range(count)]
    fleet = Fleet(name, decode(blocks_free=10**6), *workers, seed=seed)
    rounds = 8
    for number in range(rounds * count):
        place = fleet.place(prompt(1000 * seed + number))
        Booking(place.decode, place.prefill, 160, now=0.0)
    got = [each.queued_tokens / 160 for each in workers]
    most = {"affinity": 5 * rounds, "two-choices": 2 * rounds}.get(name, rounds + 3)
    assert max(got) <= most


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_who_failed_is_avoided_and_who_has_the_blocks_preferred(
    name: str, data: st.DataObject
) -> None:
    count = data.draw(st.integers(2, WIDTH + 4))
    decodes = [decode(f"d{i}", running=data.draw(st.integers(0, 9))) for i in range(count)]
    prefills = [worker(f"p{i}", queued_tokens=data.draw(st.integers(0, 99))) for i in range(count)]
    fleet = Fleet(name, *decodes, *prefills)
    best = fleet.place(prompt(1))
    assert best.prefill is not None
    if fleet.policies.caches is not None:
        caches(fleet.policies.caches, best.prefill, prompt(1))
    avoid = {best.prefill.instance_id, best.decode.instance_id}
    preferred = data.draw(st.sampled_from([d for d in decodes if d is not best.decode]))
    again = fleet.place(prompt(1), avoid=avoid)
    assert again.prefill is not best.prefill and again.decode is not best.decode
    assert fleet.place(prompt(1), prefer=preferred.instance_id).decode is preferred


@pytest.mark.parametrize("name", NAMES)
def test_none_takes_the_full_the_draining_or_the_suspect(name: str) -> None:
    full, suspect = worker("full", blocks_free=1), worker("suspect", health=Health.SUSPECT)
    leaving, well = worker("leaving", draining=True), worker("well", queued_tokens=5000)
    fleet = Fleet(name, decode(), full, suspect, leaving, well)
    if fleet.policies.caches is not None:
        for other in (full, suspect, leaving):
            caches(fleet.policies.caches, other, prompt(1))
    if name == "two-choices":  # of two without the well one the suspect is taken
        assert {fleet.prefill(prompt(1)) for _ in range(20)} <= {"well", "suspect"}
    else:
        assert {fleet.prefill(prompt(1)) for _ in range(20)} == {"well"}


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_explains_itself(name: str) -> None:
    fleet = Fleet(name, decode("decoder-1"), worker("prefill-1"), worker("prefill-2"))
    assert fleet.place(prompt(1)).explanation is None
    place = fleet.place(prompt(1), explain=True)
    assert place.prefill is not None and place.explanation is not None
    said: Any = place.explanation
    assert said["policy"] == name
    assert said["decode"]["worker"] == "decoder-"
    assert said["prefill"]["best"][0]["worker"] == "prefill-"
    assert {"score", "queued", "cached", "transfer_ms"} <= said["prefill"]["best"][0].keys()
    alone = fleet.place(prompt(1), explain=True, prefer="decoder-1").explanation
    assert alone is not None and alone["decode"]["best"] == []  # type: ignore[index]


# -- each by itself --------------------------------------------------------------------------


def test_prefix_goes_to_who_has_it_until_the_queue_costs_more() -> None:
    holder, other = worker("holder", queued_tokens=100), worker("other")
    fleet = Fleet("prefix", decode(), holder, other)
    assert fleet.prefill(prompt(1)) == "other"
    caches(fleet.policies.caches, holder, prompt(1)[:128])
    assert fleet.prefill(prompt(1)) == "holder"
    assert fleet.place(prompt(1)).cached == 128
    assert fleet.prefill(prompt(2)) == "other"
    assert fleet.prefill(prompt(1), salt=b"tenant") == "other"
    holder.placed(29, 0, now=0.0)
    assert fleet.prefill(prompt(1)) == "other"


def test_prefix_finds_the_holder_among_a_thousand() -> None:
    prefills = [worker(f"p{i}") for i in range(500)]
    decodes = [decode(f"d{i}") for i in range(500)]
    fleet = Fleet("prefix", *prefills, *decodes)
    for each in prefills:
        caches(fleet.policies.caches, each, prompt(1)[:16])
    caches(fleet.policies.caches, prefills[321], prompt(1))
    caches(fleet.policies.caches, decodes[123], prompt(1))
    place = fleet.place(prompt(1))
    assert place.prefill is prefills[321] and place.decode is decodes[123]
    assert len({fleet.prefill(prompt(1)[:20]) for _ in range(50)}) > 10, "where all have it"


def test_prefix_weighs_what_decodes_beside() -> None:
    near, far = decode("near"), decode("far")
    fleet = Fleet("prefix", near, far, worker("p"))
    caches(fleet.policies.caches, near, prompt(1)[:64])
    assert fleet.place(prompt(1)).decode is near
    near.placed(0, 64 * LIVE_TOKENS // 16 + 1, now=0.0)
    assert fleet.place(prompt(1)).decode is far


def test_affinity_keeps_sessions_while_workers_come_and_go() -> None:
    workers = [worker(f"p{i}") for i in range(9)]
    before, after = (Fleet("affinity", decode(), *some) for some in (workers, workers[1:]))
    took = {name: before.prefill(prompt(i), session=name) for i, name in enumerate("abcdefghij")}
    assert len(set(took.values())) > 3
    for number, name in enumerate("abcdefghij"):
        assert before.prefill(prompt(50 + number), session=name) == took[name]
        if took[name] != "p0":
            assert after.prefill(prompt(50 + number), session=name) == took[name]
    owner = next(each for each in workers if each.instance_id == took["a"])
    owner.refused()
    assert before.prefill(prompt(0), session="a") != took["a"]


def test_affinity_knows_a_conversation_by_its_beginning() -> None:
    fleet = Fleet("affinity", decode(), *(worker(f"p{i}") for i in range(9)))
    turns = {fleet.prefill(prompt(7, tokens)) for tokens in (256, 400, 900)}
    assert len(turns) == 1
    assert len({fleet.prefill(prompt(number)) for number in range(20)}) > 3
    assert len({fleet.prefill(prompt(7), salt=bytes([s]), session="me") for s in range(20)}) > 3


def test_two_choices_takes_the_better_of_two() -> None:
    workers = [worker(f"p{i}", queued_tokens=i) for i in range(4)]
    fleet = Fleet("two-choices", decode(), *workers)
    got = Counter(fleet.prefill(prompt(1)) for _ in range(600))
    assert got["p0"] > got["p1"] > got["p2"] > 0 == got["p3"]


def linked(*speeds: tuple[str, float]) -> dict[str, Any]:
    pairs = tuple(KvPairing(instance_id=name, bytes_per_s=speed) for name, speed in speeds)
    return {"kv_pairings": pairs, "links": Links.of(pairs)}


def test_score_counts_what_the_transfer_costs() -> None:
    slow = worker("slow", queued_tokens=0, prefill_token=1e-3)
    fast = worker("fast", queued_tokens=50, prefill_token=1e-3)
    new = worker("new", queued_tokens=5000, prefill_token=1e-3)
    token_bytes = CLASS.layers * CLASS.block_bytes / CLASS.block_size
    reader = decode(**linked(("slow", 160 * token_bytes / 0.1), ("fast", 160 * token_bytes / 0.01)))
    assert Fleet("score", reader, slow, fast, new).prefill(prompt(1)) == "fast"
    assert Fleet("score", reader, slow, fast, new, transfer=0.0).prefill(prompt(1)) == "slow"
    assert Fleet("score", reader, slow, fast, new, load=0.0).prefill(prompt(1)) == "fast"
    weighed = Fleet("score", reader, slow, fast, new, load=0.0, transfer=0.0)
    caches(weighed.policies.caches, new, prompt(1))
    assert weighed.prefill(prompt(1)) == "new"


def test_an_unmeasured_link_is_as_fast_as_the_others() -> None:
    links = Links.of([KvPairing(instance_id="a", bytes_per_s=2.0), KvPairing(instance_id="b")])
    assert links.bytes_per_s("a") == links.bytes_per_s("b") == links.bytes_per_s("c") == 2.0
    assert Links.of([]).bytes_per_s("a") == 0.0
