"""What a server tells Prometheus. Each app has a registry of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from caa.serve.engine import Engine


class Metrics:
    """Counts requests, tokens and seconds; shows how full the engine is."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "caa_requests", "Requests, by model and how they ended", ["model", "end"], registry=self.registry
        )
        self.tokens = Counter("caa_tokens", "Tokens, of prompts and of answers", ["part"], registry=self.registry)
        self.seconds = Histogram("caa_request_seconds", "From a request to its last token", registry=self.registry)
        self.first = Histogram(
            "caa_first_token_seconds", "From a request to its first piece of text", registry=self.registry
        )
        rows = Gauge("caa_rows_busy", "Texts that are being written", registry=self.registry)
        rows.set_function(lambda: engine.busy)
        waiting = Gauge("caa_requests_waiting", "Requests that wait for a row", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


@dataclass
class Watch:
    """Measures one request."""

    metrics: Metrics
    model: str
    _start: float = field(default_factory=time.monotonic)
    _heard: bool = False

    def heard(self) -> None:
        """A piece of text came."""
        if not self._heard:
            self._heard = True
            self.metrics.first.observe(time.monotonic() - self._start)

    def ended(self, reason: str, prompt_tokens: int, answer_tokens: int) -> None:
        """The last was heard."""
        self.metrics.requests.labels(self.model, reason).inc()
        self.metrics.tokens.labels("prompt").inc(prompt_tokens)
        self.metrics.tokens.labels("answer").inc(answer_tokens)
        self.metrics.seconds.observe(time.monotonic() - self._start)
