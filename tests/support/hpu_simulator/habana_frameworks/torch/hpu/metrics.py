"""The vendor's metrics API, as far as graph compilation goes; the same test can run on hardware."""

from __future__ import annotations

from hpu_simulator.library import statistics


class _Metric:
    """`graph_compilation`: how often a graph was compiled."""

    def __init__(self, name: str) -> None:
        if name != "graph_compilation":
            raise ValueError(f"The simulated hpu has no metric {name!r}, only 'graph_compilation'")
        self.name = name
        self._start = 0

    def stats(self) -> list[tuple[str, int]]:
        """Return name and value pairs."""
        return [("TotalNumber", statistics().graphs_compiled - self._start)]

    def reset(self) -> None:
        """Count from here on."""
        self._start = statistics().graphs_compiled


def metric_global(name: str) -> _Metric:
    """Return a metric of the process."""
    return _Metric(name)


def metric_localcontext(name: str) -> _Metric:
    """Return a metric of a block of code."""
    return _LocalMetric(name)


class _LocalMetric(_Metric):
    def __enter__(self) -> _Metric:
        self.reset()
        return self

    def __exit__(self, *exc: object) -> None:
        end = statistics().graphs_compiled - self._start
        self.stats = lambda: [("TotalNumber", end)]  # type: ignore[method-assign]
