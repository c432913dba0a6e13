"""`flyball tune`: deploy, simulate, monitor, reflect and adjust as one experiment, over a number of shapes.

``asked`` is what is tried and for what; ``run`` the experiment, resumable from the store; ``trial`` one shape; ``judge`` one load; ``learn``
what the what-if engine makes of it; ``choose`` which shape is next and which is best; ``answer`` and ``page`` tell it.
"""
