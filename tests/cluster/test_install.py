"""The chart and every example of it, installed: no object is refused, the server warns of nothing.

No node is needed: pods are made, and wait for one.
"""

import json
import unittest

import yaml

from cluster import CHART, EXAMPLES, NAME, RELEASE, Refused
from world import wait_for

CLUSTER = None
# All that the chart may bring.
KINDS = ("statefulsets,services,serviceaccounts,configmaps,poddisruptionbudgets,networkpolicies,pods,"
         "horizontalpodautoscalers,scaledobjects,triggerauthentications,podmonitors,servicemonitors,prometheusrules")
CPU_ONLY = CHART / "ci" / "cpu-only.yaml"


class Installed(unittest.TestCase):
    def setUp(self):
        CLUSTER.warnings.clear()

    def tearDown(self):
        CLUSTER.helm("uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout=60s")
        CLUSTER.kubectl("delete", "events", "--all")

    def install(self, path, *more, **options):
        return CLUSTER.helm("install", RELEASE, CHART, "--values", path, *more, **options)

    def strictly(self, path, *more):
        """A field that the server does not know is an error here; Helm would drop it in silence."""
        text = CLUSTER.helm("template", RELEASE, CHART, "--values", path, *more, "--kube-version", "1.37.0")
        CLUSTER.kubectl("create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=text)
        template = next(item for item in yaml.safe_load_all(text) if item and item["kind"] == "StatefulSet")["spec"]["template"]
        template["metadata"]["name"] = "single"
        # Its account is not there yet; admission of pods is what is asked.
        template["spec"]["serviceAccountName"] = "default"
        pod = json.dumps({"apiVersion": "v1", "kind": "Pod", **template})
        CLUSTER.kubectl("create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=pod)

    def workers(self):
        return CLUSTER.get("statefulset", NAME)["spec"]["replicas"]

    def left(self):
        """What is there of the release, in any namespace."""
        found = CLUSTER.get(KINDS, "--all-namespaces", "--selector", f"app.kubernetes.io/instance={RELEASE}")
        return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in found)


class Examples(Installed):
    def test_nothing_is_refused_and_nothing_warned_of(self):
        for path in EXAMPLES:
            with self.subTest(path.stem):
                self.install(path, "--dry-run=server")
                self.strictly(path)
                self.assertEqual(self.left(), [])
                self.lifecycle(path)
                self.assertEqual(CLUSTER.warnings, [])

    def lifecycle(self, path):
        self.install(path)
        wait_for("every pod", lambda: len(CLUSTER.pods()) == self.workers())
        self.assertEqual(CLUSTER.events("FailedCreate"), [])
        first = self.template()
        CLUSTER.helm("upgrade", RELEASE, CHART, "--values", path, "--set", "config.batch.linger_ms=70")
        self.assertNotEqual(self.template(), first)
        CLUSTER.helm("rollback", RELEASE, "1")
        self.assertEqual(self.template(), first)
        revisions = json.loads(CLUSTER.helm("history", RELEASE, "--output", "json"))
        self.assertEqual([revision["status"] for revision in revisions], ["superseded", "superseded", "deployed"])
        CLUSTER.helm("uninstall", RELEASE, "--wait", "--timeout=60s")
        # Pods go after the StatefulSet does.
        wait_for("an empty namespace", lambda: not self.left())

    def template(self):
        return CLUSTER.get("statefulset", NAME)["spec"]["template"]


class Admission(Installed):
    """That a pod against the standard is refused, and a warning noticed: the other tests rest on it."""

    def test_a_container_with_every_capability_is_refused(self):
        self.refused("unrestricted capabilities", "extraContainers[0].name=side", "extraContainers[0].image=side:1")

    def test_a_folder_of_the_node_is_refused(self):
        self.refused("restricted volume types", "extraVolumes[0].name=node", "extraVolumes[0].hostPath.path=/etc")

    def refused(self, why, *values):
        self.install(CPU_ONLY, *(word for value in values for word in ("--set", value)))
        self.assertRegex("\n".join(CLUSTER.warnings), f'would violate PodSecurity.*{why}')
        events = wait_for("a refusal", lambda: CLUSTER.events("FailedCreate"))
        self.assertRegex(events[0], f'violates PodSecurity "restricted:latest".*{why}')
        self.assertEqual(CLUSTER.pods(), {})

    def test_an_unknown_field_is_noticed(self):
        value = ("--set", "extraVolumes[0].name=v,extraVolumes[0].emptyDirectory.sizeLimit=1Gi")
        with self.assertRaisesRegex(Refused, 'unknown field "spec.template.spec.volumes.*emptyDirectory'):
            self.strictly(CPU_ONLY, *value)
        self.install(CPU_ONLY, *value)
        self.assertRegex("\n".join(CLUSTER.warnings), "unknown field")


class Rights(Installed):
    def test_who_owns_a_namespace_can_install(self):
        with self.assertRaisesRegex(Refused, "forbidden"):
            CLUSTER.kubectl("get", "secrets", "--namespace=kube-system", user="owner")
        self.install(CPU_ONLY, user="owner")
        CLUSTER.helm("uninstall", RELEASE, user="owner")
        self.assertEqual(CLUSTER.warnings, [])


class Scaling(Installed):
    def test_replicas_when_autoscaling_comes(self):
        """As docs/kubernetes.md has it: Helm takes the number out, which is 1, and the autoscaler sees to it."""
        self.install(CPU_ONLY, "--set", "replicas=3")
        self.assertEqual(self.workers(), 3)
        scaled = ("--set", "autoscaling.hpa.enabled=true,autoscaling.minReplicas=2")
        CLUSTER.helm("upgrade", RELEASE, CHART, "--values", CPU_ONLY, *scaled)
        wait_for("the autoscaler's number", lambda: self.workers() == 2)
        # From then on an upgrade leaves it alone.
        CLUSTER.kubectl("scale", "statefulset", NAME, "--replicas=4")
        CLUSTER.helm("upgrade", RELEASE, CHART, "--values", CPU_ONLY, *scaled, "--set", "config.batch.linger_ms=70")
        self.assertEqual(self.workers(), 4)
