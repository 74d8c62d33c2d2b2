"""The chart rendered by Helm, for the tests: objects by kind, or what Helm says against it."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "fusioncap"
HELM = os.environ["HELM"]
# The oldest that Chart.yaml allows, and the newest that there are schemas of.
OLDEST, NEWEST = "1.27", "1.37"
EXAMPLES = sorted((CHART / "ci").glob("*.yaml"))

# The least that the chart asks for.
LEAST = {"config": {"kafka": {"brokers": "kafka-0:9092"}, "s3": {"allowed_buckets": ["photos"]}}}


class Refused(Exception):
    """What Helm says instead of rendering."""


def helm(*arguments):
    done = subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def merged(base, more):
    if not (isinstance(base, dict) and isinstance(more, dict)):
        return more
    return {**base, **{key: merged(base.get(key), value) for key, value in more.items()}}


def rendered(text):
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def render(values=None, release="cap", namespace="captions", kubernetes=NEWEST):
    """Objects that `values`, on top of the least, give."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(merged(LEAST, values or {}), file)
        file.flush()
        return render_file(file.name, release, namespace, kubernetes)


def render_file(path, release="cap", namespace="captions", kubernetes=NEWEST):
    common = ("--namespace", namespace, "--kube-version", f"{kubernetes}.0")
    return rendered(helm("template", release, str(CHART), *common, "--values", str(path)))


def one(manifests, kind):
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def none(manifests, kind):
    return not [manifest for manifest in manifests if manifest["kind"] == kind]


def pod(manifests):
    return one(manifests, "StatefulSet")["spec"]["template"]["spec"]


def worker(manifests):
    return pod(manifests)["containers"][0]


def environment(manifests):
    """The worker's variables: what they are set to, or where that stands."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in worker(manifests)["env"]}


def pods(manifests):
    """Every pod that the objects would bring: (name, specification)."""
    for manifest in manifests:
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if manifest["kind"] == "Pod":
            yield name, manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            yield name, manifest["spec"]["template"]["spec"]
