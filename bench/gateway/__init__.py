"""The gateway by itself: what a token and a request cost it, beside bare servers and other routers.

    core A    what is measured: a gateway, a bare server, or a router
    core B    where its tokens come from, and the client

Tokens come from a process that computes nothing. To a gateway it is a few decode workers over the
real gRPC contract (``worker.py``): real workers with the mock runner take some four times a
gateway's CPU time per token, and would be what is measured. A bare server makes its own
(``bare.py``), and is what stands behind a router. All step at even distances (``steps.py``), and a
token tells when it was sent: it is a letter, and each letter's time is in a file that the processes
share.
"""
