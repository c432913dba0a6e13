"""Endpoints that are no continuous-batching server, each a small model behind one interface: a workload in, an ``Answer`` out.

``usl``: a plain VM endpoint by the universal scalability law. ``quota``: a pay-per-token API with rate limits. ``serverless``:
instances that start on demand and go when idle. ``ptu``: purchased throughput. ``base`` holds what they share, ``compiled`` their event loops.
"""
