"""What `flyball whatif` does, without its command line: questions as text in, answers as plain JSON out.

``asked`` reads what a person writes. ``traced`` replays a request trace on an engine file, ``stored`` predicts from an endpoint's own
telemetry; both answer in one form. ``table`` reads that form for people, ``page`` makes an HTML file of it. The simulation itself is
``analyzers.whatif``.
"""
