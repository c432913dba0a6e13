"""`flyball tune`: deploy, simulate, monitor, reflect and adjust as one experiment, over a number of shapes.

``request`` is what is tried and for what; ``run`` the experiment, resumable from the store (``history``) under its leases (``lease``);
``trial`` one shape, while ``observe`` reads its server; ``answer``, ``table`` and ``page`` tell it. Which shape is next and which is best
is ``analyzers.tuning``.
"""
