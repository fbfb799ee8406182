"""How long KV takes from one worker to another, while it is computed and after."""

from __future__ import annotations

from dataclasses import dataclass

from bench.costs import Costs
from bench.simulate.clock import ps


@dataclass(slots=True)
class Port:
    """A worker's connection to the network, in one direction."""

    free: int = 0  #: ps: when it has carried all that was given to it
    carried: int = 0  #: ps it was in use


@dataclass(frozen=True, slots=True)
class Network:
    """Carries KV layer by layer, as it is offered, in the order in which it was computed; a port
    carries one hand-off at a time."""

    byte: float  #: ps
    token_bytes: int
    layers: int
    delay: int  #: ps of every hand-off

    @classmethod
    def of(cls, costs: Costs, layers: int) -> Network:
        byte = ps(1) / costs.bytes_per_s if costs.bytes_per_s else 0.0
        return cls(byte, costs.token_bytes, layers, ps(costs.transfer_s))

    def carry(self, tokens: int, computed: int, took: int, out: Port, into: Port) -> int:
        """When the KV of ``tokens`` is over there: it was ``computed`` at that moment (ps), in a
        step that ``took`` so long, so its first layer was there that much earlier, its last then.
        """
        moving = round(tokens * self.token_bytes * self.byte)
        first = computed - took + took // self.layers
        begins = max(first, out.free, into.free)
        done = max(begins + moving, computed + moving // self.layers)
        out.free = into.free = done
        out.carried += moving
        into.carried += moving
        return done
