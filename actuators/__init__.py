"""Deploy and adjust: plans in, a changed world out.

Ground floor. Knows nothing of collectors, analyzers or the agent: it is given its settings and an HTTP caller, answers what is
there, what would lead elsewhere, and does one step at a time. One file or folder a system.
"""
