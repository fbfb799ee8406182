"""The page at ``/``: a chat, and beside it what the fleet does, live.

``static/`` is all of it, served as it is: HTML, a stylesheet, ES modules. It talks to the same
origin alone: ``/page/about``, ``/v1/models``, ``/v1/chat/completions`` and ``/live``.
"""
