"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from gateway.merge import merge


class Source:
    """Counts up; says how it was closed."""

    def __init__(self, name: str, count: int, *, fails: bool = False) -> None:
        self.name = name
        self.ahead = 0
        self.closed = False
        self._count = count
        self._fails = fails

    async def items(self) -> AsyncGenerator[str, None]:
        try:
            for number in range(self._count):
                self.ahead += 1
                yield f"{self.name}{number}"
                await asyncio.sleep(0)
            if self._fails:
                raise KeyError(self.name)
        finally:
            self.closed = True


@pytest.mark.parametrize("names", ["a", "abc"])
async def test_every_item_once_and_each_source_in_order(names: str) -> None:
    sources = [Source(name, 5) for name in names]
    found = [item async for item in merge([source.items() for source in sources])]
    for name in names:
        assert [item for item in found if item[0] == name] == [f"{name}{i}" for i in range(5)]
    assert len(found) == 5 * len(names)
    assert all(source.closed for source in sources)


@pytest.mark.parametrize("names", ["a", "abc"])
async def test_the_first_failure_ends_all(names: str) -> None:
    sources = [Source(name, 3 if name == "a" else 10**9, fails=True) for name in names]
    with pytest.raises(KeyError, match="a"):
        async for _ in merge([source.items() for source in sources]):
            pass
    assert all(source.closed for source in sources)


@pytest.mark.parametrize("names", ["a", "abc"])
async def test_a_source_waits_for_its_reader_and_ends_with_it(names: str) -> None:
    sources = [Source(name, 10**9) for name in names]
    async with aclosing(merge([source.items() for source in sources])) as merged:
        await anext(merged)
        await asyncio.sleep(0.02)
        assert all(source.ahead <= 3 for source in sources)
    assert all(source.closed for source in sources)
