"""What a request goes through, noticed once and told in three ways.

    tale.py      the one source: the orchestrator says to a request's ``Tale`` what happens to it
    timings.py   ... in its own answer, on demand (x-baton-timings)
    spans.py     ... as a trace (OpenTelemetry)
    live.py      ... to whoever listens at /live; feed.py is what they listen to, workers.py what
                 it says of workers

A request of which nobody wants to hear costs a few additions per token.
"""
