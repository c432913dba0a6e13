"""What `flyball whatif` does, without its command line: questions as text in, answers as plain JSON out.

``files`` reads what stands in files, ``candidates`` is what is replayed on; ``replays`` replays a request trace on them, and ``figures`` is
its answer. ``predictions`` predicts from an endpoint's own telemetry. Both answer in one form: ``table`` reads it for people, ``page``
makes an HTML file of it, with ``timeline``, and ``requests`` writes single requests. The simulation itself is ``analyzers.whatif``.
"""
