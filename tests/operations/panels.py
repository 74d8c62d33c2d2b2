"""The dashboard's panels with their queries, as Grafana asks Prometheus for them, and the answers."""

import json
import math
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

from world import ROOT

DASHBOARD = ROOT / "helm" / "fusioncap" / "files" / "dashboard.json"
VARIABLES = {"$namespace": "captions", "$workers": "cap-fusioncap", "$group": "fusioncap"}


@dataclass
class Series:
    legend: str
    points: list  # (seconds since the epoch, value)


@dataclass
class Panel:
    title: str
    kind: str
    place: dict
    unit: str
    least: float | None
    decimals: int | None
    stacked: bool
    thresholds: list
    series: list = field(default_factory=list)
    # Legends of the queries that gave no number at all.
    empty: list = field(default_factory=list)


def raw():
    return json.loads(DASHBOARD.read_text())["panels"]


def asked(expression, rate_interval):
    """A query with Grafana's variables filled in."""
    # The longer names first: none begins another here, but $__rate_interval must not meet $.
    for name, value in {"$__rate_interval": f"{rate_interval}s", **VARIABLES}.items():
        expression = expression.replace(name, value)
    if "$" in expression:
        raise ValueError(f"a variable is left in {expression}")
    return expression


def legend_of(template, labels):
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


class Prometheus:
    def __init__(self, address, scrape_seconds):
        self.address = address
        self.scrape_seconds = scrape_seconds

    def get(self, path, **query):
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def panels(self, begin, end, step):
        """Every panel, in the dashboard's order, with what its queries give between the two times."""
        # As Grafana reckons it, from the data source's scrape interval.
        rate_interval = max(step + self.scrape_seconds, 4 * self.scrape_seconds)
        found = []
        for one in raw():
            defaults = one.get("fieldConfig", {}).get("defaults", {})
            panel = Panel(
                title=one["title"], kind=one["type"], place=one["gridPos"], unit=defaults.get("unit", ""),
                least=defaults.get("min"), decimals=defaults.get("decimals"),
                stacked="stacking" in defaults.get("custom", {}),
                thresholds=defaults.get("thresholds", {}).get("steps", []))
            for target in one.get("targets", []):
                expression = asked(target["expr"], rate_interval)
                given = self.series(expression, target["legendFormat"], begin, end, step)
                panel.series += given
                if not given:
                    panel.empty.append(target["legendFormat"])
            found.append(panel)
        return found

    def series(self, expression, legend, begin, end, step):
        result = self.get("query_range", query=expression, start=begin, end=end, step=step)["result"]
        given = []
        for one in result:
            points = [(at, float(value)) for at, value in one["values"]]
            if any(math.isfinite(value) for _, value in points):
                given.append(Series(legend_of(legend, one["metric"]), points))
        return sorted(given, key=lambda one: one.legend)
