"""`flyball simulate`: traffic sent to a server and measured.

``asked`` turns options into a Traffic, ``profile`` reads its file; ``run`` sends it; ``verdict`` says whether the client kept up, and
``answer`` what came of it, as plain JSON; ``saved``, ``export`` and ``page`` write it down. `flyball tune` calls ``run`` and ``answer`` too.
"""
