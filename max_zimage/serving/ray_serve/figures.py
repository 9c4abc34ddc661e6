"""The figures of all replicas on one page: Prometheus asks one address, behind which it cannot tell them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class _Pages:
    """A collector of what pages say.

    Args:
        pages: Replica -> its page.
    """

    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterable[Metric]:
        """Every series, with its replica as a label."""
        found: dict[str, Metric] = {}
        for replica, page in sorted(self._pages.items()):
            for family in text_string_to_metric_families(page):
                whole = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                whole.samples += [
                    Sample(each.name, {**each.labels, "replica": replica}, each.value, each.timestamp)
                    for each in family.samples
                ]
        return found.values()


def merged(pages: Mapping[str, str]) -> bytes:
    """One page of several.

    Args:
        pages: Replica -> its page in Prometheus's text format.
    """
    registry = CollectorRegistry()
    registry.register(_Pages(pages))
    return generate_latest(registry)
