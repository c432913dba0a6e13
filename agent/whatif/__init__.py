"""What `flyball whatif` does, without its command line: questions as text in, answers as plain JSON out.

``asked`` reads what a person writes, ``strict`` and ``files`` what stands in files, ``fleets`` replicas that come and go. ``kinds`` is what
can be replayed on, ``candidates`` what is; ``traced`` replays a request trace on them, and ``figures`` of ``results`` is its answer.
``stored`` predicts from an endpoint's own telemetry. Both answer in one form: ``table`` reads it for people, ``page`` makes an HTML file
of it, with ``timeline``, and ``requests`` writes single requests. The simulation itself is ``analyzers.whatif``.
"""
