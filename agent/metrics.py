"""Flyball's own metrics, on /metrics. One registry a daemon, so that tests do not share counters."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """What each loop, each source and each decision does."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        buckets = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self.cycle_seconds = Histogram(
            "flyball_cycle_seconds", "Duration of one cycle of a loop", ["loop"], registry=r, buckets=buckets
        )
        self.cycle_errors = Counter(
            "flyball_cycle_errors", "Cycles that ended in an unexpected error", ["loop", "error"], registry=r
        )
        self.cycle_last = Gauge(
            "flyball_cycle_last_timestamp_seconds", "When a loop last ended a cycle", ["loop"], registry=r
        )
        self.reads = Counter("flyball_reads", "Readings of a source", ["endpoint", "source"], registry=r)
        self.read_errors = Counter(
            "flyball_read_errors", "Failed readings by class", ["endpoint", "source", "kind"], registry=r
        )
        self.read_seconds = Histogram(
            "flyball_read_seconds", "Duration of one reading", ["source"], registry=r, buckets=buckets
        )
        self.pushes = Counter("flyball_pushes", "What senders pushed, by status", ["path", "status"], registry=r)
        self.windows = Counter("flyball_windows", "Windows closed", ["endpoint", "source"], registry=r)
        self.coverage = Gauge(
            "flyball_window_coverage_ratio",
            "Share of the last window that was observed",
            ["endpoint", "source"],
            registry=r,
        )
        self.spooled = Gauge("flyball_spool_bytes", "Telemetry that waits for the database", registry=r)
        self.dropped = Counter(
            "flyball_dropped_windows",
            "Windows that were lost: full (the spool), damaged (on disk), refused (by the database)",
            ["reason"],
            registry=r,
        )
        self.findings = Gauge("flyball_findings", "Active findings", ["endpoint", "kind"], registry=r)
        self.attainment = Gauge(
            "flyball_objective_ratio", "Observed over limit; above 1 is missed", ["endpoint", "target"], registry=r
        )
        self.decisions = Counter(
            "flyball_decisions", "What each analysis decided", ["endpoint", "decision"], registry=r
        )
        self.analysis_errors = Counter(
            "flyball_analysis_errors", "Analyses that raised or took too long", ["endpoint", "error"], registry=r
        )
        self.logins = Counter("flyball_logins", "Attempts to log in on the page", ["outcome"], registry=r)
        self.rulings = Counter(
            "flyball_rulings", "Attempts to decide a recommendation", ["channel", "action", "code"], registry=r
        )
        self.changes = Counter("flyball_changes", "Changes by how they ended", ["endpoint", "state"], registry=r)
        self.change_errors = Counter(
            "flyball_change_errors", "Unexpected errors while a change was led on", ["endpoint", "error"], registry=r
        )
        self.saving = Gauge(
            "flyball_recommendation_saving_usd_per_month", "Saving of the open recommendation", ["endpoint"], registry=r
        )
        self.messages = Counter("flyball_messages", "Messages to people", ["channel", "outcome"], registry=r)
        self.leading = Gauge("flyball_leader", "1 while this process decides", registry=r)
        self.paused = Gauge("flyball_paused", "1 while operations are stopped", registry=r)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
