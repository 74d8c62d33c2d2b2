"""Every alert in Prometheus's own rule engine: it fires when it should, and not otherwise.

`promtool test rules` plays made-up series, a value a minute, through the rules that the chart renders.
"""

import os
import subprocess
import tempfile
import unittest
from dataclasses import dataclass
from pathlib import Path

import yaml

from test_telemetry import rules

PROMTOOL = os.environ.get("PROMTOOL")
HOURS = 2
WORKER = 'namespace="captions",pod="cap-fusioncap-0"'


def series(name, values, more="", worker=WORKER):
    labels = ",".join(part for part in (worker, more) if part)
    return {"series": f"{name}{{{labels}}}", "values": values}


def still(value):
    return f"{value}x{60 * HOURS}"


def rising(by):
    """A counter that gains so much a minute."""
    return f"0+{by}x{60 * HOURS}"


@dataclass
class Case:
    # The alert fires on each of these sets of series.
    loud: list
    # It does not on any of these.
    quiet: list
    labels: dict
    # What the alert's value reads as, where its text has it.
    value: str = ""


def committed(by):
    return series("fusioncap_transactions_total", rising(by), 'outcome="committed"')


def latency(fast, slow):
    """Histogram of references a minute below 1 s, and between 60 s and 300 s."""
    name = "fusioncap_latency_seconds_bucket"
    return [series(name, rising(fast), 'le="1"'), series(name, rising(fast), 'le="60"'),
            series(name, rising(fast + slow), 'le="300"'), series(name, rising(fast + slow), 'le="+Inf"')]


def lag(value, group="fusioncap"):
    labels = f'consumergroup="{group}",topic="images.in"'
    return [series("kafka_consumergroup_lag", still(value), f'{labels},partition="{number}"', worker="")
            for number in range(2)]


def restarts(values, container="worker"):
    return series("kube_pod_container_status_restarts_total", values, f'container="{container}"')


POD = {"pod": "cap-fusioncap-0"}
CASES = {
    "FusionCapAbsent": Case(
        loud=[[], [series("fusioncap_partitions_assigned", still(3), worker='namespace="captions",pod="other-fusioncap-0"')]],
        quiet=[[series("fusioncap_partitions_assigned", still(0))]],
        labels={"namespace": "captions"}),
    "FusionCapCircuitBreakerOpen": Case(
        loud=[[series("fusioncap_circuit_breaker_open", still(1))]],
        # A minute down, four up, again and again.
        quiet=[[series("fusioncap_circuit_breaker_open", still(0))],
               [series("fusioncap_circuit_breaker_open", "1 0 0 0 0 " * 12 * HOURS)]],
        labels=POD),
    "FusionCapStuck": Case(
        loud=[[series("fusioncap_in_flight_references", still(5)),
               series("fusioncap_transactions_total", still(9), 'outcome="committed"')],
              [series("fusioncap_in_flight_references", still(5)),
               series("fusioncap_transactions_total", rising(3), 'outcome="aborted"')]],
        quiet=[[series("fusioncap_in_flight_references", still(5)), committed(1)],
               [series("fusioncap_in_flight_references", still(0))],
               [series("fusioncap_in_flight_references", still(5)), series("fusioncap_circuit_breaker_open", still(1))]],
        labels=POD),
    "FusionCapDeadLetters": Case(
        loud=[[series("fusioncap_dead_letters_total", rising(2), 'code="corrupt_image"'),
               series("fusioncap_captions_total", rising(100))]],
        quiet=[[series("fusioncap_dead_letters_total", rising(1), 'code="corrupt_image"'),
                series("fusioncap_captions_total", rising(100))]],
        labels={"code": "corrupt_image"}),
    "FusionCapTransactionsAborted": Case(
        loud=[[series("fusioncap_transactions_total", rising(3), 'outcome="aborted"'), committed(10)]],
        quiet=[[series("fusioncap_transactions_total", rising(2), 'outcome="aborted"'), committed(10)]],
        labels={}),
    "FusionCapProducersLost": Case(
        loud=[[series("fusioncap_transactions_total", "0 0 1 2 3 4 5 6 7 7" + " 7" * 60, 'outcome="unknown"')]],
        quiet=[[series("fusioncap_transactions_total", "0 0 1 2 3 3" + " 3" * 60, 'outcome="unknown"')]],
        labels=POD),
    "FusionCapSlow": Case(loud=[latency(fast=97, slow=3)], quiet=[latency(fast=999, slow=1)], labels={}),
    "FusionCapDeadlineMissed": Case(
        loud=[[series("fusioncap_deadline_margin_seconds", still(-2), 'deadline="termination"'),
               series("fusioncap_deadline_margin_seconds", still(9), 'deadline="session"')]],
        quiet=[[series("fusioncap_deadline_margin_seconds", still(0.5), 'deadline="termination"')]],
        labels={**POD, "deadline": "termination"}),
    "FusionCapFetchRetries": Case(
        loud=[[series("fusioncap_fetch_retries_total", rising(3)), series("fusioncap_messages_total", rising(10))]],
        quiet=[[series("fusioncap_fetch_retries_total", rising(1)), series("fusioncap_messages_total", rising(10))]],
        labels={}),
    "FusionCapAwaitingSchema": Case(
        loud=[[series("fusioncap_awaiting_schema_messages", still(3))]],
        quiet=[[series("fusioncap_awaiting_schema_messages", still(0))]],
        labels=POD),
    "FusionCapModelReloadFailed": Case(
        loud=[[series("fusioncap_model_reload_failed", still(1))]],
        quiet=[[series("fusioncap_model_reload_failed", still(0))]],
        labels=POD),
    "FusionCapIdle": Case(
        loud=[[series("fusioncap_partitions_assigned", still(0)),
               series("fusioncap_partitions_assigned", still(6), worker='namespace="captions",pod="cap-fusioncap-1"')]],
        quiet=[[series("fusioncap_partitions_assigned", still(1))]],
        labels=POD),
    "FusionCapRestarting": Case(
        loud=[[restarts(f"0 1 2 3 4 5{' 5' * 60}")]],
        quiet=[[restarts(f"0 1 2{' 2' * 60}")], [restarts(rising(1), container="sidecar")]],
        labels={"namespace": "captions", **POD, "container": "worker"}),
    "FusionCapLagSeconds": Case(
        loud=[[series("fusioncap_consumer_lag_seconds", still(1200))]],
        quiet=[[series("fusioncap_consumer_lag_seconds", still(900))]],
        labels={}, value="20m 0s"),
    "FusionCapLag": Case(loud=[lag(600)], quiet=[lag(500), lag(600, group="other")], labels={}),
}
# Their series carry no namespace and no pod, or their point is that there are none.
OF_NO_POD = {"FusionCapAbsent", "FusionCapLag"}


def minutes(rule):
    return int(rule["for"].removesuffix("m"))


def text(template, case):
    for name, value in case.labels.items():
        template = template.replace("{{ $labels.%s }}" % name, value)
    return template.replace("{{ $value | humanizeDuration }}", case.value)


def expected(rule, case):
    notes = {name: text(value, case) for name, value in rule["annotations"].items()}
    return [{"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": notes}]


def elsewhere(inputs):
    return [{**one, "series": one["series"].replace('namespace="captions"', 'namespace="elsewhere"')} for one in inputs]


def plays(found):
    """promtool's tests: what goes in, and which alerts are there after so many minutes."""
    def play(name, inputs, **alerts):
        checks = [{"eval_time": at.removeprefix("at_") + "m", "alertname": name, "exp_alerts": alert}
                  for at, alert in alerts.items()]
        return {"interval": "1m", "input_series": inputs, "alert_rule_test": checks}

    for name, case in CASES.items():
        rule, wait = found[name], minutes(found[name])
        # Fifteen minutes for the rates to be whole.
        late = f"at_{wait + 16}"
        for inputs in case.loud:
            early = {f"at_{wait - 1}": []} if wait else {}
            yield play(name, inputs, **early, **{late: expected(rule, case)})
            if name not in OF_NO_POD:
                yield play(name, elsewhere(inputs), **{late: []})
        for inputs in case.quiet:
            yield play(name, inputs, **{late: []})


@unittest.skipUnless(PROMTOOL, "there is no promtool (scripts/prometheus)")
class Rules(unittest.TestCase):
    def promtool(self, *arguments):
        done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def written(self, folder):
        found = rules({"thresholds": {"lag": 1000}})
        path = Path(folder) / "rules.yaml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "workers", "rules": list(found.values())}]}))
        return path, found

    def test_prometheus_takes_them(self):
        with tempfile.TemporaryDirectory() as folder:
            path, found = self.written(folder)
            self.assertIn(f"{len(found)} rules found", self.promtool("check", "rules", str(path)))

    def test_each_fires_when_it_should_and_not_otherwise(self):
        with tempfile.TemporaryDirectory() as folder:
            path, found = self.written(folder)
            self.assertEqual(set(CASES), set(found))
            tests = {"rule_files": [str(path)], "evaluation_interval": "1m", "tests": list(plays(found))}
            (Path(folder) / "tests.yaml").write_text(yaml.safe_dump(tests))
            self.promtool("test", "rules", str(Path(folder) / "tests.yaml"))
