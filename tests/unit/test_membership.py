"""Where workers are found: how it is said, and what each source makes of what it hears."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.configure import load
from baton.identity import CompatibilityClass, Identity, Role
from baton.latest import Latest
from baton.liveness import Beat
from baton.membership import Entry
from baton.membership.dns import DnsMembership
from baton.membership.embedded import EmbeddedMembership, Roll
from baton.membership.remembered import Remembered
from baton.membership.source import Source, join_address, split_address
from baton.settings import DecodeSettings, GatewaySettings, RelaySettings

CLASS = CompatibilityClass("m", layers=2, kv_heads=1, head_size=8, block_size=16)


def entry(address: str, instance: str = "i") -> Entry:
    return Entry(address, Identity(instance, CLASS), frozenset({Role.DECODE}), "m")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("static", Source("static")),
        ("embedded", Source("embedded")),
        ("dns:prefill.baton.svc:7000", Source("dns", ("prefill.baton.svc:7000",))),
        ("etcd:10.0.0.1:2379,e2:2379", Source("etcd", ("10.0.0.1:2379", "e2:2379"))),
        ("gateway:[::1]:8002", Source("gateway", ("[::1]:8002",))),
    ],
)
def test_sources_are_said_in_a_word(text: str, source: Source) -> None:
    assert Source.parse(text) == source


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zookeeper:a:1", "'zookeeper' is no membership"),
        ("static:a:1", "static takes no address"),
        ("dns:", "dns:HOST:PORT,... names no address"),
        ("dns:name", "'name' is not HOST:PORT"),
        ("etcd:a:70000", "'a:70000' is not HOST:PORT"),
        ("gateway:::1:5", "'::1:5' is not HOST:PORT"),
    ],
)
def test_a_source_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Source.parse(text)


@pytest.mark.parametrize("address", ["a.b:1", "10.0.0.1:65535", "[fe80::1]:7"])
def test_addresses_come_apart_and_together(address: str) -> None:
    assert join_address(*split_address(address)) == address


@pytest.mark.parametrize(
    ("cls", "argv", "said"),
    [
        (GatewaySettings, ["--membership", "embedded", "--decode", "a:1"], "say nothing with"),
        (GatewaySettings, ["--membership", "dns:x"], "--membership: 'x' is not HOST:PORT"),
        (RelaySettings, ["--membership", "embedded"], "a relay asks one: gateway:"),
        (DecodeSettings, ["--join", "gateway"], "--join: 'gateway' is not HOST:PORT"),
        (DecodeSettings, ["--join", "g:1", "--host", "0.0.0.0"], "needs --advertise"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    cls: type[GatewaySettings], argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if cls is RelaySettings else ["--model", "m"]
    with pytest.raises(SystemExit):
        load(cls, [*model, *argv], "it")
    assert said in capsys.readouterr().err


def test_where_a_worker_registers() -> None:
    both = load(DecodeSettings, ["--model", "m", "--join", "a:1,b:2"], "it").posts
    assert both == Source("gateway", ("a:1", "b:2"))
    kept = load(DecodeSettings, ["--model", "m", "--join", "etcd:a:1,b:2"], "it").posts
    assert kept == Source("etcd", ("a:1", "b:2"))


def test_an_entry_survives_the_wire() -> None:
    for each in (entry("a:1"), Entry("a:1")):
        assert Entry.from_wire(each.to_wire()) == each


# -- the roll -----------------------------------------------------------------------------------


def test_who_misses_three_beats_has_left() -> None:
    roll = Roll(missed=3)
    roll.join(entry("a:1"))
    roll.join(entry("b:1"))
    assert [roll.tick(), roll.tick()] == [[], []]
    roll.join(entry("b:1"))
    assert roll.tick() == [entry("a:1")]
    assert roll.entries == {entry("b:1")}


def test_a_beat_that_came_late_counts_half() -> None:
    roll = Roll(missed=3)
    roll.join(entry("a:1"))
    assert not any(roll.tick(0.5) for _ in range(5))
    assert roll.tick(0.5)


def test_a_late_farewell_does_not_remove_who_took_the_place() -> None:
    roll = Roll(missed=3)
    roll.join(entry("a:1", "old"))
    roll.join(entry("a:1", "new"))
    roll.leave("a:1", "old")
    assert roll.entries == {entry("a:1", "new")}
    roll.leave("a:1", "new")
    assert not roll.entries


_STEPS = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "tick"]), st.integers(0, 2), st.integers(0, 1)),
    max_size=60,
)


@given(_STEPS)
def test_the_roll_is_those_who_joined_less_than_three_ticks_ago(
    steps: list[tuple[str, int, int]],
) -> None:
    roll, model = Roll(missed=3), dict[str, tuple[Entry, int]]()
    for what, place, instance in steps:
        address, name = f"w{place}:1", f"i{instance}"
        if what == "join":
            roll.join(entry(address, name))
            model[address] = (entry(address, name), 0)
        elif what == "leave":
            roll.leave(address, name)
            if address in model and model[address][0].instance_id == name:
                del model[address]
        else:
            roll.tick()
            model = {a: (e, n + 1) for a, (e, n) in model.items() if n < 2}
        assert roll.entries == {each for each, _ in model.values()}


async def test_registrations_expire_by_themselves() -> None:
    membership = EmbeddedMembership(Beat(0.02, 3))
    running = asyncio.create_task(membership.run())
    seen = membership.watch()
    assert await anext(seen) == frozenset()
    membership.join(entry("a:1"))
    assert await anext(seen) == {entry("a:1")}
    async with asyncio.timeout(30):
        assert await anext(seen) == frozenset()
    running.cancel()


async def test_who_follows_a_value_sees_the_latest() -> None:
    latest = Latest(0)
    values = latest.follow()
    assert await anext(values) == 0
    latest.set(1)
    latest.set(2)
    assert await anext(values) == 2
    waiting = asyncio.ensure_future(anext(values))
    latest.set(2)
    await asyncio.sleep(0)
    assert not waiting.done(), "nothing has changed"
    latest.set(3)
    assert await waiting == 3


# -- DNS ----------------------------------------------------------------------------------------


class Names:
    """A resolver by hand."""

    def __init__(self, **answers: set[str] | None) -> None:
        self.answers = answers

    async def __call__(self, host: str, port: int) -> frozenset[str]:
        answer = self.answers.get(host)
        if answer is None:
            raise OSError("no such name")
        return frozenset(answer)


async def test_every_address_of_a_name_is_a_worker() -> None:
    names = Names(p={"10.0.0.1", "fe80::1"}, d={"10.0.0.2"})
    membership = DnsMembership(["p:7000", "d:7001"], 0.01, resolve=names)
    seen = membership.watch()
    everyone = {Entry("10.0.0.1:7000"), Entry("[fe80::1]:7000"), Entry("10.0.0.2:7001")}
    assert await anext(seen) == everyone
    names.answers["p"] = {"10.0.0.3"}
    assert await anext(seen) == {Entry("10.0.0.3:7000"), Entry("10.0.0.2:7001")}


async def test_a_failing_lookup_keeps_the_last_answer_of_that_name() -> None:
    names = Names(p={"10.0.0.1"}, d={"10.0.0.2"})
    seen = DnsMembership(["p:1", "d:1"], 0.01, resolve=names).watch()
    await anext(seen)
    names.answers |= {"p": None, "d": {"10.0.0.9"}}
    assert await anext(seen) == {Entry("10.0.0.1:1"), Entry("10.0.0.9:1")}


async def test_the_systems_resolver_is_asked() -> None:
    assert Entry("127.0.0.1:7") in await anext(DnsMembership(["127.0.0.1:7"], 1.0).watch())


def test_who_is_missing_is_remembered_for_a_while() -> None:
    now = 0.0
    remembered = Remembered(7.0, clock=lambda: now)
    one, two = entry("a:1"), entry("b:2")
    assert remembered.take(frozenset({one, two})) == {one, two}
    now = 100.0  # there was no reading for long: it is the first that counts
    assert remembered.take(frozenset()) == {one, two}
    now = 106.0
    assert remembered.take(frozenset({two})) == {one, two}
    now = 108.0
    assert remembered.take(frozenset({two})) == {two}
    again = entry("b:2", "another instance")
    assert remembered.take(frozenset({again})) == {again}
    now = 110.0
    assert remembered.take(frozenset()) == {again}, "counted afresh since it came back"
