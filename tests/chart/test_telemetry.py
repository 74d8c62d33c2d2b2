"""Alerts and dashboard: every expression parses, and every metric in it is one that there is."""

import json
import re
import unittest

import promql_parser
import yaml

from chart import CHART, ROOT, one, render, render_file

# What others export: the Kafka exporter, kube-state-metrics, the kubelet's cAdvisor.
OTHERS = {
    "kafka_consumergroup_lag",
    "kube_pod_container_status_restarts_total",
    "kube_pod_container_resource_limits",
    "container_memory_working_set_bytes",
}


def exposed():
    """Names as /metrics has them, from src/telemetry/metrics.rs: (all, one for each instrument)."""
    text = (ROOT / "src" / "telemetry" / "metrics.rs").read_text().split("#[cfg(test)]")[0]
    made = re.findall(r'\b(?:u64_|f64_)?(counter|gauge|histogram)\(\s*"(fusioncap_\w+)"', text)
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    names = {name: [name + ending for ending in endings[kind]] for kind, name in made}
    return {full for group in names.values() for full in group}, names


def metrics(expression):
    """Names of the series that an expression reads; an error where it is none."""
    for variable, value in (("$__rate_interval", "5m"), ("$", "")):
        expression = expression.replace(variable, value)
    promql_parser.parse(expression)
    return set(re.findall(r"\b([a-z_]+)\{", expression))


def panels():
    return json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]


def rules(values=None):
    found = one(render({"prometheusRule": {"enabled": True, **(values or {})}}), "PrometheusRule")
    return {rule["alert"]: rule for rule in found["spec"]["groups"][0]["rules"]}


class Dashboard(unittest.TestCase):
    def test_expressions(self):
        names, _ = exposed()
        for panel in panels():
            for target in panel.get("targets", []):
                used = metrics(target["expr"])
                self.assertTrue(used, panel["title"])
                self.assertLessEqual(used, names | OTHERS, panel["title"])

    def test_it_shows_every_metric_of_the_worker(self):
        _, instruments = exposed()
        self.assertGreater(len(instruments), 15)
        used = set().union(*(metrics(target["expr"]) for panel in panels() for target in panel.get("targets", [])))
        for name, series in instruments.items():
            self.assertTrue(used & set(series), f"no panel shows {name}")

    def test_panels_are_whole(self):
        seen, taken = set(), set()
        for panel in panels():
            self.assertNotIn(panel["id"], seen)
            seen.add(panel["id"])
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(place["x"] + place["w"], 24)
            taken |= cells
            if panel["type"] != "row":
                self.assertTrue(panel["description"].endswith("."), panel["title"])

    def test_the_config_map_holds_it(self):
        manifests = render_file(CHART / "ci" / "eks-irsa.yaml")
        (found,) = [m for m in manifests if m["kind"] == "ConfigMap" and "fusioncap.json" in m["data"]]
        self.assertEqual(json.loads(found["data"]["fusioncap.json"])["panels"], panels())
        self.assertEqual(found["metadata"]["labels"]["grafana_dashboard"], "1")


class Scaling(unittest.TestCase):
    def test_the_queries(self):
        keda = {"enabled": True, "trigger": "lag-seconds", "lagSeconds": {"serverAddress": "http://prometheus:9090"}}
        manifests = render({"partitions": 6, "autoscaling": {"keda": keda}})
        queries = [trigger["metadata"]["query"] for trigger in one(manifests, "ScaledObject")["spec"]["triggers"]]
        self.assertEqual(len(queries), 2)
        for query in queries:
            self.assertEqual(metrics(query), {"fusioncap_consumer_lag_seconds", "fusioncap_consumer_lag_messages"})
            for selector in re.findall(r"\{([^}]*)\}", query):
                self.assertEqual(selector, 'namespace="captions",pod=~"cap-fusioncap-[0-9]+"')


class Alerts(unittest.TestCase):
    def test_expressions(self):
        names, _ = exposed()
        for name, rule in rules({"thresholds": {"lag": 1000}}).items():
            used = metrics(rule["expr"])
            self.assertTrue(used, name)
            self.assertLessEqual(used, names | OTHERS, name)

    def test_each_says_what_to_do(self):
        page = (ROOT / "docs" / "kubernetes.md").read_text()
        for name, rule in rules({"thresholds": {"lag": 1000}}).items():
            notes = rule["annotations"]
            self.assertIn(rule["labels"]["severity"], {"critical", "warning", "info"})
            self.assertGreater(len(notes["summary"]), 20, name)
            self.assertGreater(len(notes["description"]), 80, name)
            self.assertNotRegex(json.dumps(rule), r"<[a-z]\w*>", f"{name} has a gap")
            self.assertTrue(notes["runbook_url"].endswith(f"docs/kubernetes.md#{name.lower()}"))
            self.assertRegex(page, rf"(?m)^### {name}$", "the runbook lacks it")

    def test_they_are_about_this_release(self):
        for name, rule in rules().items():
            for selector in re.findall(r"\{([^}]*)\}", rule["expr"]):
                self.assertIn('namespace="captions",pod=~"cap-fusioncap-[0-9]+"', selector, name)

    def test_a_redrive_is_run_in_a_pod_of_this_release(self):
        told = rules()["FusionCapDeadLetters"]["annotations"]["description"]
        self.assertIn("`kubectl --namespace captions exec cap-fusioncap-0 -- fusioncap redrive --code "
                      "{{ $labels.code }} --dry-run`", told)

    def test_thresholds(self):
        found = rules({"thresholds": {"latencySeconds": 12.5, "deadLetterRatio": 0.5, "lagSeconds": 300}})
        self.assertTrue(found["FusionCapSlow"]["expr"].endswith("> 12.5"))
        self.assertIn("> 0.5 * scalar(", found["FusionCapDeadLetters"]["expr"])
        self.assertTrue(found["FusionCapLagSeconds"]["expr"].endswith("> 300"))
        self.assertTrue(rules()["FusionCapLagSeconds"]["expr"].endswith("> 900"))

    def test_left_out(self):
        self.assertNotIn("FusionCapLag", rules())
        self.assertNotIn("FusionCapIdle", rules({"disabled": ["FusionCapIdle"]}))
        to_zero = {"prometheusRule": {"enabled": True}, "partitions": 6,
                   "autoscaling": {"minReplicas": 0, "keda": {"enabled": True}}}
        names = [rule["alert"] for rule in one(render(to_zero), "PrometheusRule")["spec"]["groups"][0]["rules"]]
        self.assertNotIn("FusionCapAbsent", names)
        self.assertIn("FusionCapStuck", names)

    def test_the_schema_knows_their_names(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        known = schema["properties"]["prometheusRule"]["properties"]["disabled"]["items"]["enum"]
        written = [rule["alert"] for rule in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())]
        self.assertEqual(known, written)
