"""How endpoints respond to load: one folder a kind, each a workload in, an answer with what is paid for out.

``engine``: continuous batching, by the what-if engine. ``vm``: the universal scalability law. ``quota``: a pay-per-token API with rate
limits. ``ptu``: purchased throughput. ``serverless``: instances that start on demand and go when idle. ``base`` holds the contract,
``system`` what an engine file describes, ``service`` and ``results`` what they share, ``kernels`` their event loops.
"""
