"""Workers as the chart installs them, on a node, with a Kafka and an S3 server beside it: they start,
are replaced, evicted, killed and scaled while references come, and each has one answer in the end.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import unittest
from pathlib import Path

import load
from cluster import ADDRESS, CHART, NAME, NAMESPACE, PROGRAMS, RELEASE, Refused
from world import KEYS, ROOT, World, wait_for

CLUSTER = None
# References a second: what two workers of a debug build do on two cores that Kafka needs too.
RATE = 6
GRACE = 30
# The columns of `fusioncap verify`.
COUNTED = ("references", "captions", "dead letters", "missing", "duplicated", "reordered")
# With what the cluster's test has instead of a laptop's Kafka and store.
SMALL = ("--set", "resources.requests.cpu=100m,resources.requests.memory=256Mi,resources.limits.memory=1Gi")


class Workers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = cls.enterClassContext(World(address=ADDRESS))
        load.fill(cls.world)
        shutil.copytree(ROOT / "models" / "tiny", cls.world.folder / "store" / "models" / "captioner" / "1")
        CLUSTER.kubectl("create", "secret", "generic", "s3-user", f"--from-literal=user={KEYS['AWS_ACCESS_KEY_ID']}",
                        f"--from-literal=password={KEYS['AWS_SECRET_ACCESS_KEY']}")
        cls.values = ("--values", CHART / "ci" / "cpu-only.yaml", "--set", f"config.s3.endpoint={cls.world.store}",
                      "--set", f"config.kafka.brokers={cls.world.kafka}", *SMALL)
        begun = time.monotonic()
        cls.change("install")
        print(f"installed, two workers ready after {time.monotonic() - begun:.0f} s", flush=True)

    @classmethod
    def tearDownClass(cls):
        CLUSTER.helm("uninstall", RELEASE, "--wait", "--timeout=120s")
        CLUSTER.kubectl("delete", "secret", "s3-user")

    @classmethod
    def change(cls, verb, *more):
        """Helm waits until every pod is ready by the worker's own probes."""
        CLUSTER.helm(verb, RELEASE, CHART, *cls.values, *more, "--wait", "--timeout=180s")
        CLUSTER.kubectl("rollout", "status", "statefulset", NAME, "--timeout=180s")

    def setUp(self):
        CLUSTER.warnings.clear()
        self.all_ready(2)

    # --- What is asked of the cluster.

    def all_ready(self, number):
        wait_for(f"{number} workers, ready", lambda: self.ready() == number == len(CLUSTER.pods()), 120)

    def ready(self):
        return sum(condition["type"] == "Ready" and condition["status"] == "True"
                   for pod in CLUSTER.pods().values() for condition in pod["status"].get("conditions", []))

    def uids(self):
        return {name: pod["metadata"]["uid"] for name, pod in CLUSTER.pods().items()}

    def restarts(self):
        return sum(status["restartCount"] for pod in CLUSTER.pods().values() for status in pod["status"]["containerStatuses"])

    def allowed(self):
        """Disruptions that the budget allows now."""
        return CLUSTER.get("poddisruptionbudget", NAME)["status"].get("disruptionsAllowed")

    def evict(self, pod):
        CLUSTER.kubectl("create", "--filename=-", f"--raw=/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction",
                        stdin=json.dumps({"apiVersion": "policy/v1", "kind": "Eviction",
                                          "metadata": {"name": pod, "namespace": NAMESPACE}}))

    def processes(self):
        """Of the workers, on this machine: number to what /proc says of it."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "cmdline").read_bytes().startswith(b"fusioncap\0worker\0"):
                    lines = (folder / "status").read_text().splitlines()
                    found[int(folder.name)] = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        return found

    @contextlib.contextmanager
    def watched(self):
        """Everything that happens to pods meanwhile, as the server tells it: a list that is filled at the end."""
        told, states = CLUSTER.folder / "watch.json", []
        with open(told, "w") as file:
            command = [PROGRAMS / "kubectl", "get", "pods", "--watch", "--output-watch-events", "--output=json"]
            watch = subprocess.Popen(command, stdout=file, env={**os.environ, "KUBECONFIG": str(CLUSTER.kubeconfig("administrator"))})
        try:
            yield states
            time.sleep(1)
        finally:
            watch.terminate()
            watch.wait()
        text, decoder, place = told.read_text(), json.JSONDecoder(), 0
        while place < len(text.rstrip()):
            state, place = decoder.raw_decode(text, place)
            place += len(text[place:]) - len(text[place:].lstrip())
            states.append(state["object"])

    @contextlib.contextmanager
    def loaded(self):
        """References come meanwhile; afterwards each has one answer, all those of before too."""
        sender = load.Load(self.world.kafka, RATE)
        sender.start()
        try:
            time.sleep(4)
            yield
            time.sleep(4)
        finally:
            sender.stop()
        begun = time.monotonic()
        try:
            wait_for("an answer to every reference", lambda: self.verified()[0] == 0, 100)
        except TimeoutError:
            self.fail("\n".join([self.verified()[1], CLUSTER.kubectl("get", "pods", "--output=wide"), *self.logged()]))
        took, told = time.monotonic() - begun, self.verified()[1]
        total = next(line for line in told.splitlines() if "total" in line).split()
        counts = ", ".join(f"{count} {what}" for count, what in zip(total[1:], COUNTED))
        print(f"{counts}; all there {took:.0f} s after the last", flush=True)

    def logged(self):
        """By the workers, but for what they say all the time."""
        for name in CLUSTER.pods():
            for line in CLUSTER.kubectl("logs", name, "--tail=2000").splitlines():
                if "transaction committed" not in line:
                    yield f"{name}: {line[:600]}"

    def verified(self):
        return self.world.run(["verify"], kafka_alone=True)

    def ended(self, states):
        """Exit codes of workers that were told to go, by the pods' uids."""
        codes = {}
        for pod in states:
            for status in pod["status"].get("containerStatuses", []):
                if "terminated" in status["state"] and "deletionTimestamp" in pod["metadata"]:
                    codes[pod["metadata"]["uid"]] = status["state"]["terminated"]["exitCode"]
        return codes

    # --- What holds.

    def test_ids_follow_the_pods(self):
        group = self.world.admin.describe_consumer_groups(["fusioncap"])["fusioncap"].result(30)
        self.assertEqual(sorted(member.group_instance_id for member in group.members),
                         [f"{NAMESPACE}-{NAME}-0", f"{NAMESPACE}-{NAME}-1"])

    def test_a_worker_has_no_more_rights_than_it_needs(self):
        found = self.processes()
        self.assertEqual(len(found), 2)
        for number, status in found.items():
            self.assertEqual(status["Uid"].split(), ["65532"] * 4)
            self.assertEqual(status["Gid"].split(), ["65532"] * 4)
            self.assertEqual([int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")], [0, 0, 0])
            # Seccomp's mode 2 is a filter.
            self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))
            mounts = [line.split() for line in Path(f"/proc/{number}/mounts").read_text().splitlines()]
            options = {mount[1]: mount[3].split(",") for mount in mounts}
            self.assertIn("ro", options["/"])
            self.assertIn("rw", options["/tmp"])
            self.assertNotIn("/var/run/secrets/kubernetes.io/serviceaccount", options)

    def test_helm_test(self):
        CLUSTER.helm("test", RELEASE)
        self.assertEqual(CLUSTER.warnings, [])
        self.change("upgrade", "--set", "replicas=0,smokeTest.timeoutSeconds=3")
        with self.assertRaises(Refused):
            CLUSTER.helm("test", RELEASE)
        CLUSTER.kubectl("delete", "pod", f"{NAME}-smoke")
        self.change("upgrade")

    def test_an_upgrade_and_back(self):
        before = self.uids()
        with self.loaded(), self.watched() as states:
            self.change("upgrade", "--set", "image.tag=next")
            middle = self.uids()
            CLUSTER.helm("rollback", RELEASE, "--wait", "--timeout=180s")
            CLUSTER.kubectl("rollout", "status", "statefulset", NAME, "--timeout=180s")
        self.assertFalse(set(before.values()) & set(middle.values()))
        self.one_at_a_time(states)
        self.left_in_order(states, [*before.values(), *middle.values()])

    def test_another_configuration_replaces_the_pods(self):
        before = self.uids()
        with self.loaded(), self.watched() as states:
            self.change("upgrade", "--set", "config.batch.linger_ms=70")
        self.assertFalse(set(before.values()) & set(self.uids().values()))
        self.assertIn("linger_ms: 70", CLUSTER.get("configmap", NAME)["data"]["worker.yaml"])
        self.left_in_order(states, before.values())
        # The same again is no change.
        kept = self.uids()
        self.change("upgrade", "--set", "config.batch.linger_ms=70")
        self.assertEqual(self.uids(), kept)

    def test_a_model_from_the_store(self):
        with self.loaded():
            self.change("upgrade", "--set", "config.model.path=s3://models/captioner/1")
        self.assertIn("s3://models/captioner/1", CLUSTER.kubectl("logs", f"{NAME}-0"))
        self.change("upgrade")

    def test_a_setting_that_no_worker_can_use(self):
        """The first pod to get it stays away, the other works on; a rollback ends it by itself."""
        kept = self.uids()[f"{NAME}-0"]
        with self.loaded():
            CLUSTER.helm("upgrade", RELEASE, CHART, *self.values, "--set", "config.model.path=/nowhere")
            wait_for("a worker that gives up", lambda: self.uids().get(f"{NAME}-1") and self.restarts() > 0)
            self.assertEqual(self.uids()[f"{NAME}-0"], kept)
            self.assertEqual(self.ready(), 1)
            CLUSTER.helm("rollback", RELEASE, "--wait", "--timeout=180s")
            self.all_ready(2)
        self.assertEqual(self.restarts(), 0)

    def test_eviction_within_the_budget(self):
        wait_for("a budget of one", lambda: self.allowed() == 1)
        before = self.uids()
        with self.loaded(), self.watched() as states:
            self.evict(f"{NAME}-0")
            wait_for("no budget left", lambda: self.allowed() == 0)
            with self.assertRaisesRegex(Refused, "disruption budget"):
                self.evict(f"{NAME}-1")
            self.assertEqual(self.uids()[f"{NAME}-1"], before[f"{NAME}-1"])
            wait_for("a successor", lambda: self.uids().get(f"{NAME}-0", before[f"{NAME}-0"]) != before[f"{NAME}-0"])
            self.all_ready(2)
            wait_for("a budget of one", lambda: self.allowed() == 1)
        self.left_in_order(states, [before[f"{NAME}-0"]])

    def test_pods_that_are_taken_away(self):
        before = self.uids()
        with self.loaded(), self.watched() as states:
            CLUSTER.kubectl("delete", "pod", f"{NAME}-1", f"--grace-period={GRACE}")
            self.all_ready(2)
            # Without waiting for its end: two of one name may live for a moment, and one is fenced.
            CLUSTER.kubectl("delete", "pod", f"{NAME}-0", "--grace-period=0", "--force")
            wait_for("a successor", lambda: self.uids().get(f"{NAME}-0", before[f"{NAME}-0"]) != before[f"{NAME}-0"])
            self.all_ready(2)
        self.left_in_order(states, [before[f"{NAME}-1"]])

    def test_a_process_that_is_killed(self):
        before = self.uids()
        with self.loaded():
            os.kill(min(self.processes()), signal.SIGKILL)
            wait_for("a restart", lambda: self.restarts() == 1)
            self.all_ready(2)
        self.assertEqual(self.uids(), before)
        # So that the other tests begin with none.
        CLUSTER.kubectl("rollout", "restart", "statefulset", NAME)
        CLUSTER.kubectl("rollout", "status", "statefulset", NAME, "--timeout=180s")

    def test_more_workers_and_fewer(self):
        """The partitions of the one that goes wait for session.timeout.ms, as docs/kubernetes.md has it."""
        with self.loaded():
            CLUSTER.kubectl("scale", "statefulset", NAME, "--replicas=3")
            self.all_ready(3)
            time.sleep(4)
            CLUSTER.kubectl("scale", "statefulset", NAME, "--replicas=2")
            self.all_ready(2)

    def test_kafka_goes_away_and_comes_back(self):
        """For longer than the probes' patience; nobody is restarted for it."""
        before = self.uids()
        with self.loaded():
            self.world.broker("stop")
            time.sleep(70)
            self.assertEqual((self.uids(), self.restarts()), (before, 0))
            # One that starts meanwhile waits, too.
            CLUSTER.kubectl("delete", "pod", f"{NAME}-1", f"--grace-period={GRACE}")
            wait_for("a successor", lambda: self.uids().get(f"{NAME}-1", before[f"{NAME}-1"]) != before[f"{NAME}-1"])
            time.sleep(30)
            self.assertLess(self.ready(), 2)
            self.world.broker("start")
            self.all_ready(2)
        self.assertEqual((self.uids()[f"{NAME}-0"], self.restarts()), (before[f"{NAME}-0"], 0))

    def one_at_a_time(self, states):
        """Never are both away: told to go, or not yet ready."""
        pods = {}
        for pod in states:
            conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", [])}
            gone = "deletionTimestamp" in pod["metadata"]
            pods[pod["metadata"]["name"]] = not gone and conditions.get("Ready") == "True"
            self.assertTrue(any(pods.values()), pods)

    def left_in_order(self, states, uids):
        """With code 0, which is the worker's word for a drain that was finished."""
        codes = self.ended(states)
        self.assertEqual({uid: codes.get(uid) for uid in uids}, dict.fromkeys(uids, 0))
