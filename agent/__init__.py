"""The daemon: the loop, the store, approvals, reports, pages, command line.

Alone holds time, storage and order. What is decided is decided in ``analyzers``; what is read and done goes through
``collectors`` and ``actuators``.
"""
