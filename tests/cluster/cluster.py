"""A Kubernetes of this machine's own: etcd, the API server with RBAC and pod security admission, the
controllers and the scheduler, each a process with its files in one folder. node.py adds a node.

Runs in a network namespace of its own (scripts/cluster-test), so that ports are as usual.
`KUBERNETES` in the environment names the folder of the programs, `HELM` is Helm, `CRDS` the folder of
KEDA's and the Prometheus operator's definitions.
"""

import json
import os
import secrets
import ssl
import subprocess
import urllib.request
from pathlib import Path

from world import ROOT, Processes, wait_for

CHART = ROOT / "helm" / "fusioncap"
EXAMPLES = sorted((CHART / "ci").glob("*.yaml"))
PROGRAMS = Path(os.environ["KUBERNETES"])
HELM = os.environ["HELM"]
# The bridge that pods are on has the node's address: brokers and the store listen there.
ADDRESS = "10.88.0.1"
NETWORK = "10.88.0.0/16"
SERVER = f"https://{ADDRESS}:6443"
NAMESPACE = "captions"
RELEASE = "cap"
NAME = "cap-fusioncap"
NODE = "node"

# Name to groups, as kubeadm gives them. `owner` has a role in one namespace and no other right.
USERS = {"administrator": "system:masters", "owner": "", "system:kube-controller-manager": "",
         "system:kube-scheduler": "", "dns": "", f"system:node:{NODE}": "system:nodes"}
# Warnings count where a pod would be refused, and so does what only a later object brings.
RESTRICTED = ("pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")


class Refused(Exception):
    """What kubectl or Helm says and ends with another code than 0."""


class Cluster(Processes):
    def __init__(self):
        super().__init__()
        self.warnings = []
        self.tokens = {user: secrets.token_hex(16) for user in USERS}
        try:
            self._network()
            self._keys()
            self._control_plane()
            self._contents()
        except BaseException:
            self.__exit__()
            raise

    # --- What the tests do with it.

    def run(self, *command, user="administrator", stdin=None):
        """(stdout, stderr); what the server warns of is kept in `warnings` too."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig(user)), "HELM_CACHE_HOME": f"{self.folder}/helm",
                       "HELM_CONFIG_HOME": f"{self.folder}/helm", "HELM_DATA_HOME": f"{self.folder}/helm"}
        done = subprocess.run([str(word) for word in command], env=environment, input=stdin, capture_output=True,
                              text=True, check=False)
        self.warnings += [line for line in done.stderr.splitlines() if "warning" in line.lower()]
        if done.returncode != 0:
            raise Refused(done.stderr + done.stdout)
        return done.stdout, done.stderr

    def kubectl(self, *arguments, **options):
        return self.run(PROGRAMS / "kubectl", *arguments, **options)[0]

    def helm(self, *arguments, **options):
        return self.run(HELM, *arguments, "--namespace", NAMESPACE, **options)[0]

    def get(self, kind, *arguments):
        """One object, or with no name all of them."""
        told = json.loads(self.kubectl("get", kind, *arguments, "--output", "json"))
        return told["items"] if "items" in told else told

    def pods(self):
        """Of the release, by name."""
        found = self.get("pods", "--selector", f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/name=fusioncap")
        return {pod["metadata"]["name"]: pod for pod in found}

    def events(self, reason):
        return [event["message"] for event in self.get("events") if event["reason"] == reason]

    def kubeconfig(self, user):
        path = self.folder / f"kubeconfig-{user.replace(':', '-')}"
        if not path.exists():
            path.write_text(json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": SERVER, "certificate-authority": str(self.certificate)}}],
                "users": [{"name": user, "user": {"token": self.tokens[user]}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": user, "namespace": NAMESPACE}}]}))
        return path

    # --- How it comes about.

    def _network(self):
        for command in ("link set lo up", "link add cni0 type bridge", f"address add {ADDRESS}/16 dev cni0",
                        "link set cni0 up", f"route add default via {ADDRESS} dev cni0"):
            subprocess.run(["ip", *command.split()], check=True)

    def _keys(self):
        self.certificate, self.key = self.folder / "server.crt", self.folder / "server.key"
        names = f"IP:{ADDRESS},IP:127.0.0.1,DNS:kubernetes.default.svc"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-days", "2", "-subj", "/CN=kubernetes", "-addext", f"subjectAltName={names}",
                        "-keyout", self.key, "-out", self.certificate], check=True, stderr=subprocess.DEVNULL)
        self.users = self.folder / "users.csv"
        self.users.write_text("".join(f'{token},{user},{user},"{USERS[user]}"\n' for user, token in self.tokens.items()))

    def _control_plane(self):
        store = "http://127.0.0.1:2379"
        self.start("etcd", [PROGRAMS / "etcd", f"--data-dir={self.folder}/etcd", f"--listen-client-urls={store}",
                            f"--advertise-client-urls={store}", "--listen-peer-urls=http://127.0.0.1:2380",
                            "--log-level=warn", "--unsafe-no-fsync"], ready=f"{store}/health")
        self.start("kube-apiserver", [
            PROGRAMS / "kube-apiserver", f"--etcd-servers={store}", f"--advertise-address={ADDRESS}",
            f"--tls-cert-file={self.certificate}", f"--tls-private-key-file={self.key}",
            f"--token-auth-file={self.users}", "--authorization-mode=Node,RBAC",
            # Pod security is on without being named.
            "--enable-admission-plugins=NodeRestriction", "--service-cluster-ip-range=10.89.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.certificate}", f"--service-account-signing-key-file={self.key}",
            f"--cert-dir={self.folder}", "--kubelet-preferred-address-types=InternalIP"], ready=self._server_is_ready)
        for program, more in (("kube-controller-manager", [f"--service-account-private-key-file={self.key}",
                                                           f"--root-ca-file={self.certificate}",
                                                           "--use-service-account-credentials"]),
                              ("kube-scheduler", [])):
            user = self.kubeconfig(f"system:{program}")
            self.start(program, [PROGRAMS / program, f"--kubeconfig={user}", "--leader-elect=false", "--secure-port=0",
                                 *more])

    def _server_is_ready(self):
        request = urllib.request.Request(f"{SERVER}/readyz", headers={"Authorization": f"Bearer {self.tokens['administrator']}"})
        context = ssl.create_default_context(cafile=str(self.certificate))
        try:
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _contents(self):
        """What a cluster's administrator has there before the chart comes."""
        for definition in sorted(Path(os.environ["CRDS"]).glob("*.yaml")):
            # Too long for the annotation of `apply`.
            self.kubectl("create", "--filename", definition)
        for name in (NAMESPACE, "monitoring"):
            self.kubectl("create", "namespace", name)
            self.kubectl("label", "namespace", name, *RESTRICTED)
        self.kubectl("create", "rolebinding", "owner", "--clusterrole=admin", "--user=owner")
        self.kubectl("create", "clusterrole", "dns", "--verb=list,watch",
                     "--resource=endpointslices.discovery.k8s.io,services,pods,namespaces")
        self.kubectl("create", "clusterrolebinding", "dns", "--clusterrole=dns", "--user=dns")
        self.kubectl("create", "priorityclass", "batch-high", "--value=1000")
        self.kubectl("create", "--filename=-", stdin=json.dumps({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}))
        self.kubectl("wait", "--for=condition=established", "--timeout=60s", "crd", "--all")
        # Pods wait for it.
        wait_for("an account for pods", lambda: "default" in self.kubectl("get", "serviceaccounts"))
