"""One node of the cluster: containerd with runc, a kubelet, the pods' network and their DNS, and the
images that its pods are made of: the worker's, as the Dockerfile has it, and a pause.

`CONTAINERD` in the environment names the folder that Debian's packages are unpacked in, `IMAGE_STORE`
the one of the image's stages, `CGROUPS` a name for the control groups. Needs a mount namespace of its own.
"""

import json
import os
import subprocess
from pathlib import Path

import oci
from build import Builder
from cluster import ADDRESS, NETWORK, NODE, PROGRAMS
from world import ROOT, wait_for

PACKAGES = Path(os.environ["CONTAINERD"])
PAUSE = "fusioncap.test/pause:1"
BUILT = "/src/target/release/fusioncap"
IMAGE = "docker.io/library/fusioncap"
# The one of the chart, and a second one for upgrades: the same content.
TAGS = ("0.1.0", "next")


class Node:
    def __init__(self, cluster):
        self.cluster = cluster
        self.folder = cluster.folder / "node"
        self.folder.mkdir()
        self.socket = self.folder / "containerd.sock"
        for place in ("/run", "/var/log"):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
        self._groups()
        self._containerd()
        self._images()
        self._kubelet()
        self._dns()

    def ready(self):
        return any(condition["type"] == "Ready" and condition["status"] == "True"
                   for node in self.cluster.get("nodes") for condition in node["status"]["conditions"])

    def _groups(self):
        """A kubelet makes its groups in one that is there."""
        hierarchies = [Path("/sys/fs/cgroup")]
        if not (hierarchies[0] / "cgroup.controllers").exists():
            hierarchies = [path for path in hierarchies[0].iterdir() if path.is_dir()]
        for hierarchy in hierarchies:
            (hierarchy / os.environ["CGROUPS"]).mkdir(exist_ok=True)
        # A new group of this hierarchy has no processors and no memory of its own.
        for file in ("cpuset.cpus", "cpuset.mems"):
            above = Path("/sys/fs/cgroup/cpuset", file)
            if above.exists():
                (above.parent / os.environ["CGROUPS"] / file).write_text(above.read_text())

    def _containerd(self):
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": {
                "type": "host-local", "dataDir": f"{self.folder}/addresses", "routes": [{"dst": "0.0.0.0/0"}],
                "ranges": [[{"subnet": NETWORK, "gateway": ADDRESS}]]}}]}
        (self.folder / "net.d").mkdir()
        (self.folder / "net.d" / "pods.conflist").write_text(json.dumps(network))
        settings = self.folder / "containerd.toml"
        settings.write_text(f"""version = 2
root = "{self.folder}/containerd"
state = "/run/containerd"
[grpc]
address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# Not every root may make a process less likely to be killed.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PACKAGES}/usr/lib/cni"
conf_dir = "{self.folder}/net.d"
""")
        self.cluster.start("containerd", [PACKAGES / "usr/bin/containerd", "--config", settings],
                           ready=lambda: self._ctr("version"))

    def _ctr(self, *command):
        done = subprocess.run([PACKAGES / "usr/bin/ctr", f"--address={self.socket}", "--namespace=k8s.io", *command],
                              capture_output=True, text=True, check=False)
        return done.returncode == 0 or None

    def _images(self):
        pause = self.folder / "pause"
        pause.mkdir()
        (pause / "pause").write_bytes((PROGRAMS / "pause").read_bytes())
        (pause / "pause").chmod(0o755)
        self._image(pause, {"entrypoint": ["/pause"]}, [PAUSE])
        builder = Builder(ROOT, Path(os.environ["IMAGE_STORE"]),
                          given={"build": {BUILT: os.environ["FUSIONCAP"]}})
        stage = builder.stage("cpu")
        with builder.readable(stage.layers) as root:
            self._image(root, stage.config, [f"{IMAGE}:{tag}" for tag in TAGS])

    def _image(self, root, config, names):
        layer = oci.layer_of(root, self.folder / "layer.tar")
        archive = oci.write(self.folder / "image.tar", layer, config, names)
        if not self._ctr("images", "import", archive):
            raise RuntimeError(f"containerd does not take the image {names}")
        layer.unlink()
        archive.unlink()

    def _kubelet(self):
        settings = self.folder / "kubelet.json"
        names = self.folder / "resolv.conf"
        names.write_text("")
        settings.write_text(json.dumps({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self.socket}", "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{os.environ['CGROUPS']}", "enforceNodeAllocatable": ["none"],
            # Some machines still have the first version of control groups.
            "failCgroupV1": False, "failSwapOn": False, "clusterDNS": [ADDRESS], "clusterDomain": "cluster.local",
            "resolvConf": str(names), "volumePluginDir": f"{self.folder}/plugins",
            # The disk is this machine's, and full or not nobody's concern here.
            "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "memory.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            # The address is in a network of its own: nobody else reaches it.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"}}))
        self.cluster.start("kubelet", [
            PROGRAMS / "kubelet", f"--config={settings}", f"--root-dir={self.folder}/kubelet",
            f"--kubeconfig={self.cluster.kubeconfig(f'system:node:{NODE}')}", f"--hostname-override={NODE}",
            f"--node-ip={ADDRESS}", f"--cert-dir={self.folder}"], ready="http://127.0.0.1:10248/healthz")
        wait_for("a node that is ready", self.ready)

    def _dns(self):
        zone = self.folder / "Corefile"
        zone.write_text(f""".:53 {{
  bind {ADDRESS}
  health 127.0.0.1:8181
  errors
  kubernetes cluster.local {{
    kubeconfig {self.cluster.kubeconfig('dns')}
  }}
}}
""")
        self.cluster.start("dns", [PROGRAMS / "dns", "-conf", zone], ready="http://127.0.0.1:8181/health")
