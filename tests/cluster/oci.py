"""Archives that containerd imports: images in OCI's layout, of one layer each.

OCI image specification 1.1: image-layout.md, config.md.
"""

import hashlib
import io
import json
import tarfile

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEX = "application/vnd.oci.image.index.v1+json"


def layer_of(root, path):
    """A tar file at `path` of everything in the folder `root`."""
    with tarfile.open(path, "w") as archive:
        archive.add(root, arcname=".")
    return path


def write(path, layer, config, names):
    """`config` is what tests/container reads from the Dockerfile; `names` are the image's, in full."""
    with open(layer, "rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    described = json.dumps({"architecture": "amd64", "os": "linux", "config": settings(config),
                            "rootfs": {"type": "layers", "diff_ids": [digest]}}).encode()
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": entry(CONFIG, described),
                           "layers": [{"mediaType": LAYER, "digest": digest, "size": layer.stat().st_size}]}).encode()
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {**entry(MANIFEST, manifest), "annotations": {"io.containerd.image.name": name}} for name in names]}
    with tarfile.open(path, "w") as archive:
        add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        add(archive, "index.json", json.dumps(index).encode())
        for blob in (described, manifest):
            add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        archive.add(layer, arcname=f"blobs/sha256/{digest.removeprefix('sha256:')}")
    return path


def settings(config):
    """As `docker inspect` names them."""
    return {"User": config.get("user", ""), "Env": [f"{name}={value}" for name, value in config.get("env", {}).items()],
            "Entrypoint": config["entrypoint"], "Cmd": config.get("cmd", []), "WorkingDir": config.get("workdir", "/"),
            "StopSignal": config.get("stopsignal", "SIGTERM"), "Labels": config.get("labels", {})}


def entry(kind, blob):
    return {"mediaType": kind, "digest": "sha256:" + hashlib.sha256(blob).hexdigest(), "size": len(blob)}


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
