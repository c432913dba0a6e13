"""The what-if engine: how would another shape respond under this workload?

``engine`` replays a workload on a continuous-batching server, event by event. ``calibrate`` learns the server's iteration model
from windows. ``predict`` puts both together: a Shape and a Workload in, a Prediction out, or a refusal.
"""
