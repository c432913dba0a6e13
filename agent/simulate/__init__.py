"""`flyball simulate`: traffic sent to a server and measured.

``request`` turns options into a TrafficRequest, ``options`` and ``profile`` read them; ``run`` sends it; ``answer`` says what came of it,
as plain JSON; ``records``, ``export`` and ``page`` write it down. `flyball tune` calls ``run`` and ``answer`` too.
"""
