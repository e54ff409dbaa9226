"""Monitoring of a server: metrics for Prometheus, and logs as JSON lines."""

from __future__ import annotations

import logging
import logging.config
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
from kserve.errors import InvalidInput, ModelNotFound
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from easyrec_mm.console import json_line
from easyrec_mm.serving import tracing
from easyrec_mm.serving.release import Release, Source
from easyrec_mm.serving.service import Answer

# Variable with the folder in which a server's processes share metrics; prometheus_client reads it when it is imported.
SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
# Longer texts are cut in the log.
_MOST_CHARACTERS = 2000

prometheus_client.disable_created_metrics()
_LATENCY_BUCKETS = (0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.064, 0.128, 0.5, 2.0)
REQUESTS = Counter("easyrec_mm_requests", "Requests by outcome: ok, wrong (4xx), unavailable (5xx)", ["outcome"])
LATENCY = Histogram("easyrec_mm_request_seconds", "Time of a request within the model", buckets=_LATENCY_BUCKETS)
CANDIDATES = Counter("easyrec_mm_candidates", "Candidates answered")
VECTOR_HITS = Counter("easyrec_mm_vector_hits", "Candidates whose image vector the store had")
VECTOR_MISSES = Counter(
    "easyrec_mm_vector_misses", "Candidates whose image vector the store lacked, by what was done", ["filled"]
)
FEATURE_VECTOR_MISSES = Counter(
    "easyrec_mm_feature_vector_misses", "Keys of features of which their store had no vector", ["feature"]
)
RELOADS = Counter("easyrec_mm_reloads", "New releases by outcome: taken, refused", ["outcome"])
REFUSALS = Counter(
    "easyrec_mm_refusals",
    "Requests that were refused before they were read, and connections that were closed, by reason: ending, too_many, "
    "no_token, too_large, too_slow, not_http, no_room",
    ["reason"],
)
UNDER_WAY = Gauge(
    "easyrec_mm_requests_under_way", "Requests that are being answered", ["protocol"], multiprocess_mode="livesum"
)
CONNECTIONS = Gauge("easyrec_mm_connections", "Open connections of REST", multiprocess_mode="livesum")
_RELEASE_LABELS = ("checkpoint", "step", "generation", "image_tower")
RELEASE = Gauge(
    "easyrec_mm_release",
    "Processes that answer with this model and store generation",
    _RELEASE_LABELS,
    multiprocess_mode="livesum",
)


def count_vectors(answer: Answer) -> None:
    """Count the sources of the answered candidates' vectors, and the missing vectors of features."""
    counts = np.bincount(answer.sources, minlength=len(Source))
    CANDIDATES.inc(len(answer.sources))
    VECTOR_HITS.inc(int(counts[Source.STORE]))
    for source in (Source.MEAN, Source.COMPUTED, Source.NO_IMAGE):
        if counts[source]:
            VECTOR_MISSES.labels(source.name.lower()).inc(int(counts[source]))
    for feature, number in answer.missing_vectors.items():
        FEATURE_VECTOR_MISSES.labels(feature).inc(number)


def show_release(new: Release, old: Release | None = None) -> None:
    """Set the gauge to the release that answers requests."""
    if old is not None:
        RELEASE.labels(**old.version()).set(0)
    RELEASE.labels(**new.version()).set(1)


def metrics_page(accept: str) -> tuple[bytes, str]:
    """Return the page for Prometheus, with the metrics of all processes of the server, and its content type."""
    encode, content_type = choose_encoder(accept)
    registry = prometheus_client.REGISTRY
    if folder := os.environ.get(SHARED_METRICS):
        _forget_dead_processes(folder)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)
    return encode(registry), content_type


def _forget_dead_processes(folder: str) -> None:
    matches = (re.search(r"_(\d+)\.db$", path.name) for path in Path(folder).glob("gauge_live*.db"))
    for process in {int(match[1]) for match in matches if match}:
        if not Path(f"/proc/{process}").exists():
            mark_process_dead(process, folder)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON line that also contains the fields of `extra={"fields": {...}}`.

    Texts may come from clients: they are shortened, hold no secrets of addresses, and cannot steer a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            **{name: _short(v) if isinstance(v, str) else v for name, v in getattr(record, "fields", {}).items()},
            **tracing.log_fields(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json_line(record.created, record.levelname, record.name, _short(record.getMessage()), fields)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}... ({len(text)} characters)"


def _is_no_mistake_of_a_client(record: logging.LogRecord) -> bool:
    """Return whether to log a record: KServe would log client errors with a traceback, but the client gets them."""
    return not (record.exc_info and isinstance(record.exc_info[1], InvalidInput | ModelNotFound | NotImplementedError))


def configure_logs(is_quiet: bool) -> None:
    """Log JSON lines to stderr: ours from INFO, or WARNING; those of libraries from WARNING; and none per request."""
    handler = {
        "class": "logging.StreamHandler",
        "stream": "ext://sys.stderr",
        "formatter": "json",
        "filters": ["mistakes"],
    }
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # from KServe's routes
    # What uvicorn warns of is what clients do wrong; the metrics count it.
    levels = {
        "easyrec_mm": "WARNING" if is_quiet else "INFO",
        "kserve": "WARNING",
        "uvicorn": "CRITICAL",
        "uvicorn.access": "CRITICAL",
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"mistakes": {"()": lambda: _is_no_mistake_of_a_client}},
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {"stderr": handler},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {name: {"level": level} for name, level in levels.items()},
        }
    )
