"""Traffic to a deployed model, measured at the socket.

``engine`` sends and stamps; ``framing`` and ``connection`` are its HTTP and its sockets; ``schedule`` says what is due and ``requests`` what
is said; ``record`` and ``account`` turn what came back into a ``tally``, and tallies merge exactly. ``fleet`` runs several engines as
processes (``worker``), ``thread`` one within another program. Imports nothing here, so that a worker starts at once.
"""
