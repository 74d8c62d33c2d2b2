"""Every example of helm/fusioncap/ci: linted, rendered, and each object held against the schema of its
kind, of Kubernetes, of KEDA or of the Prometheus operator. And the schema of the values itself."""

import json
import re
import subprocess
import sys
import unittest
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import yaml

from chart import CHART, EXAMPLES, NEWEST, OLDEST, ROOT, environment, helm, one, pods, render, render_file

CRDS = ROOT / ".tools" / "chart-crds"
OPERATORS = ("keda.sh", "monitoring.coreos.com")


def closed(schema):
    """A definition's schema with unknown fields refused, which Kubernetes prunes in silence."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    is_open = inner.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in inner
    if isinstance(inner.get("properties"), dict) and inner.get("type") == "object" and not is_open:
        inner["additionalProperties"] = False
    if inner.get("x-kubernetes-int-or-string"):
        inner.pop("type", None)
    if isinstance(inner.get("pattern"), str):
        # Go's expressions may turn case off anywhere, Python's at the beginning alone.
        inner["pattern"] = re.sub(r"^(.*)\(\?i\)", r"(?i)\1", inner["pattern"])
    return inner


def definitions():
    """(apiVersion, kind) to JSON Schema."""
    found = {}
    for path in CRDS.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


class Manifests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.crds = definitions()

    def validate(self, manifest, kubernetes):
        group = manifest["apiVersion"].split("/")[0]
        if group not in OPERATORS:
            kubernetes_validate.validate(manifest, kubernetes, strict=True)
            return
        if self.crds:
            jsonschema.validate(manifest, self.crds[manifest["apiVersion"], manifest["kind"]])

    def test_lint(self):
        for path in EXAMPLES:
            with self.subTest(path.name):
                helm("lint", "--strict", str(CHART), "--kube-version", f"{NEWEST}.0", "--values", str(path))

    def test_examples_are_what_they_say(self):
        names = {path.stem for path in EXAMPLES}
        self.assertEqual(names, {"cpu-only", "one-gpu", "eks-irsa", "msk-sasl", "air-gapped"})

    def test_every_object_fits_its_schema(self):
        kinds = set()
        for path in EXAMPLES:
            for kubernetes in (OLDEST, NEWEST):
                for manifest in render_file(path, kubernetes=kubernetes):
                    with self.subTest(f"{path.name}, {kubernetes}, {manifest['kind']}"):
                        self.validate(manifest, kubernetes)
                        kinds.add(manifest["kind"])
        self.assertEqual(kinds, {
            "ConfigMap", "HorizontalPodAutoscaler", "NetworkPolicy", "Pod", "PodDisruptionBudget", "PodMonitor",
            "PrometheusRule", "ScaledObject", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet",
            "TriggerAuthentication",
        })

    def test_the_schemas_of_operators_are_there(self):
        if not self.crds:
            self.skipTest("run without the schemas of KEDA and of the Prometheus operator")
        manifests = render_file(CHART / "ci" / "eks-irsa.yaml")
        for kind in ("ScaledObject", "PodMonitor", "PrometheusRule"):
            manifest = one(manifests, kind)
            manifest["spec"]["unknown"] = 1
            with self.assertRaises(jsonschema.ValidationError):
                self.validate(manifest, NEWEST)

    def test_keda_knows_the_triggers_settings(self):
        fields = {scaler.stem.removesuffix("_scaler"): dict(re.findall(r'keda:"name=(\w+), *order=([\w;]+)', scaler.read_text()))
                  for scaler in CRDS.glob("*_scaler.go")}
        if not fields:
            self.skipTest("run without the schemas of KEDA and of the Prometheus operator")
        used = set()
        for path in EXAMPLES:
            for manifest in render_file(path):
                spec = manifest.get("spec", {})
                if manifest["kind"] == "ScaledObject":
                    for trigger in spec["triggers"]:
                        used.add(trigger["type"])
                        for name in trigger["metadata"]:
                            self.assertIn("triggerMetadata", fields[trigger["type"]].get(name, ""), name)
                if manifest["kind"] == "TriggerAuthentication":
                    for reference in spec["secretTargetRef"]:
                        self.assertIn("authParams", fields["kafka"].get(reference["parameter"], ""), reference)
        self.assertEqual(used, set(fields))

    def test_the_registry_is_reached_where_there_is_one(self):
        def ports(url=None, given=()):
            config = {"registry": {"url": url}} if url else {}
            policy = {"enabled": True, "registry": {"ports": list(given)}}
            found = one(render({"config": config, "networkPolicy": policy}), "NetworkPolicy")
            return sorted(int(port["port"]) for rule in found["spec"]["egress"] for port in rule["ports"])

        without = ports()
        for url, port in (("http://registry:8081", 8081), ("https://registry/apis/ccompat/v7", 443),
                          ("http://registry", 80)):
            self.assertEqual(ports(url), sorted([*without, port]))
        self.assertEqual(ports("http://registry:8081", [9000]), sorted([*without, 9000]))

    def test_a_collector_is_reached_where_the_example_has_one(self):
        manifests = render_file(CHART / "ci" / "eks-irsa.yaml")
        collector = urlsplit(environment(manifests)["OTEL_EXPORTER_OTLP_ENDPOINT"])
        _, namespace, _ = collector.hostname.split(".")
        selector = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        rule = {"to": [selector], "ports": [{"port": collector.port, "protocol": "TCP"}]}
        self.assertIn(rule, one(manifests, "NetworkPolicy")["spec"]["egress"])

    def test_pods_are_restricted(self):
        for path in EXAMPLES:
            for name, spec in pods(render_file(path)):
                with self.subTest(f"{path.name}, {name}"):
                    self.restricted(spec)

    def restricted(self, spec):
        """The Pod Security Standard of that name, and a root file system that nobody writes to."""
        security = spec["securityContext"]
        self.assertTrue(security["runAsNonRoot"])
        self.assertEqual(security["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertFalse(spec["automountServiceAccountToken"])
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            self.assertNotIn(field, spec)
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "csi"}
        for volume in spec.get("volumes", []):
            self.assertTrue(set(volume) - {"name"} <= allowed, volume)
        for container in spec["containers"] + spec.get("initContainers", []):
            inner = container["securityContext"]
            self.assertFalse(inner["allowPrivilegeEscalation"])
            self.assertTrue(inner["readOnlyRootFilesystem"])
            self.assertEqual(inner["capabilities"], {"drop": ["ALL"]})


class Values(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.schema = json.loads((CHART / "values.schema.json").read_text())
        cls.values = yaml.safe_load((CHART / "values.yaml").read_text())

    def test_it_is_a_schema(self):
        jsonschema.Draft7Validator.check_schema(self.schema)
        jsonschema.validate(self.values, self.schema)

    def test_everything_is_described_and_closed(self):
        def walk(path, node):
            if not isinstance(node, dict):
                return
            if "properties" in node:
                self.assertFalse(node["additionalProperties"], path)
                for name, value in node["properties"].items():
                    self.assertGreater(len(value.get("description", "")), 8, f"{path}.{name}")
                    walk(f"{path}.{name}", value)
            for key in ("items", "additionalProperties"):
                walk(f"{path}.{key}", node.get(key))

        walk("", self.schema)

    def test_defaults_are_those_of_the_values(self):
        def walk(path, node, value):
            if "properties" in node and "default" not in node:
                for name, inner in node["properties"].items():
                    if name in value:
                        walk(f"{path}.{name}", inner, value[name])
                self.assertLessEqual(set(value), set(node["properties"]), path)
                return
            self.assertEqual(node["default"], value, path)

        for name, value in self.values.items():
            walk(name, self.schema["properties"][name], value)

    def test_the_readme_and_the_schema_are_current(self):
        subprocess.run([sys.executable, ROOT / "scripts" / "chart-readme", "--check"], check=True)

    def test_every_value_is_used(self):
        text = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
        for name in self.values:
            self.assertRegex(text, rf"\.Values\.{name}\b")

    def test_files_stay_short(self):
        for folder in (CHART, ROOT / "tests" / "chart", ROOT / "scripts"):
            for path in folder.rglob("*"):
                if path.is_file() and path.suffix != ".pyc":
                    self.assertLess(len(path.read_text().splitlines()), 500, path)

    def test_notes_are_rendered(self):
        # `helm template` leaves the notes out, and everything else asks a cluster.
        text = 'apiVersion: v1\nkind: Secret\nstringData: {{ include "fusioncap.notes" . | toJson }}'
        notes = one(render({"extraManifests": [text]}), "Secret")["stringData"]
        self.assertIn("The workers of consumer group fusioncap read images.in", notes)
        self.assertIn("`partitions` is not set", notes)


class Strictness(unittest.TestCase):
    def test_a_wrong_object_is_found(self):
        manifest = one(render(), "StatefulSet")
        manifest["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(manifest, NEWEST, strict=True)
