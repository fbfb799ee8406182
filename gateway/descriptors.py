"""How many connections this process may have: each is a file descriptor."""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger(__name__)

#: Descriptors for all else: gRPC connections to workers, listening sockets, log, epoll.
RESERVE = 512


def room_for(connections: int) -> int:
    """Raise the process's limit as far as it takes and may be; returns for how many connections
    there is room, at most ``connections``, and says so in the log when it is fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVE
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        limit = soft
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return connections
    room = max(1, limit - RESERVE)
    log.warning(
        "room for fewer connections than --max-connections",
        asked=connections,
        room=room,
        descriptors=limit,
        remedy="a higher hard limit: ulimit -Hn, LimitNOFILE=",
    )
    return room
