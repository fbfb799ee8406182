"""The gateway: HTTP in, placement and recovery, tokens from decode workers, SSE out.

A request flows app -> schemas -> requests -> orchestrator -> (admission, waiting, placement,
session) and its tokens back through transcript -> openai_api -> streams.
"""
