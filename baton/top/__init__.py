"""``baton top``: a fleet on a terminal, as it is now.

    feed.py      a gateway's GET /live, followed for ever             -> what it says
    window.py    percentiles of the last minute, in bounded memory    (pure)
    fleet.py     workers as all gateways see them                     (pure)
    streams.py   the open requests, and how quick they are            (pure)
    scene.py     all of it put together: figures, alarms, notes       (pure)
    palette.py   what means what in which colour
    columns.py   a worker or a stream as the cells of a row           (pure)
    orders.py    what workers and gateways are told from here
    glass.py     the look of an old tube, for the fun of it           (pure)
    panels.py, dialogs.py, app.py       on the screen, with textual (the extra ``tui``)

The feed changes the scene; a few times a second the app shows it. Nothing else knows the time.
"""
