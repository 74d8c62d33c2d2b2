"""What holds for an image: `Cpu` for both, `Cuda` for the one with NVIDIA's libraries besides."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import tomllib
import unittest
import warnings
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from build import call

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
ORT_VERSION = re.search(r"^ORT_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
MODEL = "/usr/share/fusioncap/models"
BILL = "usr/share/doc/fusioncap/sbom.cdx.json"
BINARY = "/usr/local/bin/fusioncap"
MEGABYTE = 1_000_000
# Everything but the model.
MOST = 150 * MEGABYTE
# The driver's comes from the host, with NVIDIA's container toolkit; TensorRT's with whoever wants it.
DRIVER, TENSORRT = {"libcuda.so.1"}, {"libnvinfer.so.10", "libnvonnxparser.so.10"}

# Set by run.py: the images, by target; whether the binary is one that is shipped.
IMAGES, SHIPPED = {}, True


class Cpu(unittest.TestCase):
    target = "cpu"

    @classmethod
    def setUpClass(cls):
        if cls.target not in IMAGES:
            raise unittest.SkipTest(f"not asked for: --{cls.target}")
        cls.image = IMAGES[cls.target]
        cls.root = cls.enterClassContext(cls.image.entered({"/tmp/photos": ROOT / "samples"}))
        cls.bill = json.loads((cls.root / BILL).read_text())

    # --- What is in it.

    def test_only_the_binary_can_be_run(self):
        run, shells = set(), ("sh", "bash", "dash", "busybox", "apt", "dpkg", "perl", "python3", "openssl")
        for path, status in self.image.files():
            self.assertFalse(path.name in shells and not stat.S_ISDIR(status.st_mode), path)
            executable = stat.S_ISREG(status.st_mode) and status.st_mode & 0o111
            if executable and ".so" not in path.name:
                run.add(str(path))
        self.assertEqual(run, {BINARY})

    def test_nothing_in_it_can_be_changed_or_changes_who_one_is(self):
        writable = set()
        for path, status in self.image.files():
            self.assertEqual(status.st_uid, 0, path)
            if stat.S_ISLNK(status.st_mode):
                continue
            if stat.S_ISREG(status.st_mode):
                self.assertFalse(status.st_mode & (stat.S_ISUID | stat.S_ISGID), path)
            if status.st_mode & 0o002:
                writable.add(str(path))
        self.assertEqual(writable, {"/tmp", "/var/tmp"})

    def test_every_library_is_there(self):
        seen = 0
        for path, status in self.image.files():
            if not stat.S_ISREG(status.st_mode) or not (".so" in path.name or str(path) == BINARY):
                continue
            with open(self.root / str(path)[1:], "rb") as file:
                if file.read(4) != b"\x7fELF":
                    continue
            with self.subTest(str(path)):
                self.assertEqual(self.image.unresolved(path) - self.elsewhere(path), set())
            seen += 1
        self.assertGreater(seen, 40)

    def elsewhere(self, path):
        return set()

    def test_the_runtime_is_the_one_of_the_tests(self):
        library = self.root / self.image.config["env"]["ORT_DYLIB_PATH"][1:]
        self.assertEqual(os.readlink(library), f"libonnxruntime.so.{ORT_VERSION}")
        self.assertTrue(library.exists())

    def test_the_roots_of_trust_are_debians(self):
        found = (self.root / "usr/lib/ssl").joinpath("cert.pem")
        bundle = (self.root / os.readlink(found)[1:]).read_text()
        self.assertGreater(bundle.count("BEGIN CERTIFICATE"), 100)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(bundle)
            file.flush()
            parsed = subprocess.run(["openssl", "storeutl", "-noout", "-certs", file.name], capture_output=True, check=True)
        self.assertIn(f"Total found: {bundle.count('BEGIN CERTIFICATE')}", parsed.stdout.decode())

    def test_it_is_small(self):
        sizes = {"binary": 0, "ONNX Runtime": 0, "NVIDIA's libraries": 0, "bill of materials": 0, "Debian": 0, "model": 0}
        for path, status in self.image.files():
            sizes[part_of(str(path))] += status.st_size if stat.S_ISREG(status.st_mode) else 0
        sizes = {part: size for part, size in sizes.items() if size}
        own = sum(size for part, size in sizes.items() if part != "model")
        print(f"\nsizes of `{self.target}` in MB: " + ", ".join(f"{part} {size / MEGABYTE:.1f}" for part, size in sizes.items())
              + f"; without the model {own / MEGABYTE:.1f}")
        if self.target != "cpu":
            return
        if SHIPPED:
            self.assertLess(own, MOST)
        else:
            print("the binary is no release build and not counted: instead 60 MB, more than one has")
            self.assertLess(own - sizes["binary"] + 60 * MEGABYTE, MOST)

    # --- What it says of itself.

    def test_user_ports_and_signals(self):
        config = self.image.config
        self.assertEqual((config["user"], config["expose"], config["stopsignal"]), ("65532:65532", "8080", "SIGTERM"))
        self.assertEqual((config["entrypoint"], config["cmd"]), (["fusioncap"], ["worker"]))
        self.assertEqual(self.image.healthcheck(), ["fusioncap", "healthcheck"])

    def test_labels(self):
        labels = {name.removeprefix("org.opencontainers.image."): text for name, text in self.image.config["labels"].items()}
        self.assertEqual(labels["version"], {"cpu": VERSION, "cuda": f"{VERSION}-cuda"}[self.target])
        self.assertEqual((labels["licenses"], labels["revision"]), ("Apache-2.0", "0123abc"))
        self.assertRegex(labels["created"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        for name in ("title", "description", "source", "url", "documentation", "vendor"):
            self.assertTrue(labels[name], name)

    def test_the_bill_of_materials_is_valid(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str((self.root / BILL).read_text())
        self.assertIsNone(problem)
        references = [component["bom-ref"] for component in self.bill["components"]]
        self.assertEqual(len(references), len(set(references)))
        known = {*references, self.bill["metadata"]["component"]["bom-ref"]}
        for edge in self.bill["dependencies"]:
            self.assertLessEqual({edge["ref"], *edge["dependsOn"]}, known)

    def test_the_bill_of_materials_is_of_this_image(self):
        found = {component["purl"].partition("?")[0]: component for component in self.bill["components"]}
        self.assertIn(f"pkg:cargo/fusioncap@{VERSION}", found)
        debian = {path.name for path in (self.root / "var/lib/dpkg/status.d").iterdir()}
        self.assertEqual({found[purl]["name"] for purl in found if purl.startswith("pkg:deb/")}, debian)
        runtime = found[f"pkg:pypi/{self.runtime()}@{ORT_VERSION}"]
        library = f"/usr/local/lib/onnxruntime/libonnxruntime.so.{ORT_VERSION}"
        hashes = {file["name"]: file["hashes"][0]["content"] for file in runtime["components"]}
        told = subprocess.run(["sha256sum", self.root / library[1:]], capture_output=True, text=True, check=True).stdout
        self.assertEqual(hashes[Path(library).name], told.split()[0])

    def runtime(self):
        return "onnxruntime"

    def test_the_bill_of_materials_has_what_is_linked_and_no_more(self):
        names = {component["name"] for component in self.bill["components"]}
        for linked in ("rdkafka-sys", "ort", "tokenizers", "aws-sdk-s3", "turbojpeg-sys", "tokio"):
            self.assertIn(linked, names)
        for other in ("s3s", "burn", "proptest", "clap_derive", "cmake"):
            self.assertNotIn(other, names)

    def test_every_licence_is_known(self):
        expressions = set()
        for component in self.bill["components"]:
            licences = component["licenses"]
            self.assertTrue(licences, component["name"])
            for entry in licences:
                expressions.add(entry.get("expression"))
                self.assertNotEqual(entry.get("license", {}).get("name"), "unknown", component["name"])
            if component["purl"].startswith("pkg:deb/"):
                self.assertTrue((self.root / "usr/share/doc" / component["name"] / "copyright").exists(), component["name"])
        self.assertLessEqual({"MIT", "Apache-2.0", "MIT OR Apache-2.0"}, expressions)
        for document in ("fusioncap/LICENSE", "onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt"):
            self.assertTrue((self.root / "usr/share/doc" / document).exists(), document)

    # --- What it does.

    def test_the_version(self):
        told = self.image.run("--version")
        self.assertEqual((told.returncode, told.stdout), (0, f"fusioncap {VERSION}\n"), told.stderr)

    def test_a_photo_gets_its_caption(self):
        told = self.image.run("caption", "/tmp/photos/airport.jpg")
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assertEqual(json.loads(told.stdout)["caption"], "a red and white airplane at an airport")

    def test_brokers_are_trusted_by_the_one_file_of_authorities(self):
        """OpenSSL is compiled to look elsewhere, from where a link leads there."""
        bundle = self.root / "etc/ssl/certs/ca-certificates.crt"
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            port, said = tls_server(stack, folder)
            self.assertIn("alert unknown ca", self.shaken(port, said))
            (folder / "bundle").write_text(bundle.read_text() + (folder / "certificate").read_text())
            (folder / "bundle").chmod(0o644)
            call("mount", "--bind", folder / "bundle", bundle)
            stack.callback(call, "umount", "--lazy", bundle)
            self.assertIn("Protocol version", self.shaken(port, said))

    def shaken(self, port, said):
        """What a server with TLS says when a broker's client has come to it."""
        before = len(said())
        command = [*self.image.config["entrypoint"], "verify", "--brokers", f"127.0.0.1:{port}",
                   "--set", "kafka.properties.security.protocol=ssl"]
        client = self.image.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.until(lambda: re.search("alert|Protocol version", said()[before:]) or client.poll() is not None)
        finally:
            client.kill()
            client.wait()
        return said()[before:]

    def test_the_root_is_read_only_and_tmp_is_not(self):
        """`evaluate` writes its results to the path that it is given."""
        annotations = [{"image_id": 1, "caption": "a cat on a bed"}]
        references = {"images": [{"id": 1, "file_name": "cat.jpg"}], "annotations": annotations}
        (self.root / "tmp/references.json").write_text(json.dumps(references))
        (self.root / "tmp/captions.json").write_text(json.dumps(annotations))
        command = ["evaluate", "--captions", "/tmp/captions.json", "--references", "/tmp/references.json", "--results"]
        refused = self.image.run(*command, "/usr/share/fusioncap/results.json")
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("Read-only file system", refused.stderr)
        written = self.image.run(*command, "/tmp/results.json")
        self.assertEqual(written.returncode, 0, written.stderr)

    def test_the_health_check_where_nothing_listens(self):
        told = self.healthcheck(free_port())
        self.assertEqual(told.returncode, 1)
        self.assertIn("the worker does not answer", told.stderr)
        self.assertIn("Connection refused", told.stderr)

    def test_a_worker_is_healthy_and_takes_sigterm_as_process_1(self):
        """While it waits for a broker; tests/worker has the end of one at work."""
        port = free_port()
        command = [*self.image.config["entrypoint"], *self.image.config["cmd"]]
        uid, gid = self.image.user
        inside = [shutil.which("unshare"), "--pid", "--fork", "--kill-child",
                  shutil.which("chroot"), f"--userspec={uid}:{gid}", "--groups=", self.root,
                  f"/usr/local/bin/{command[0]}", *command[1:]]
        with tempfile.NamedTemporaryFile("w+") as log:
            worker = subprocess.Popen(inside, env=self.image.environment(self.settings(port)), stdout=log, stderr=log)
            said = Path(log.name).read_text
            try:
                told = self.healthy(port, worker)
                self.assertEqual((told.returncode, told.stdout), (0, "live\n"), told.stderr + said())
                self.until(lambda: "model loaded" in said() or worker.poll() is not None)
                children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
                os.kill(int(children[0]), signal.SIGTERM)
                self.assertEqual(worker.wait(30), 0, said())
                for told in ("model loaded", '"signal":"SIGTERM"'):
                    self.assertIn(told, said())
            finally:
                with contextlib.suppress(ProcessLookupError):
                    worker.kill()
                worker.wait()

    def settings(self, port):
        """The environment alone: no file is mounted."""
        return {"FUSIONCAP_KAFKA__BROKERS": f"127.0.0.1:{free_port()}", "FUSIONCAP_HTTP__LISTEN": f"0.0.0.0:{port}",
                "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "eu-central-1"}

    def healthcheck(self, port):
        _, *arguments = self.image.healthcheck()
        return self.image.run(*arguments, environment=self.settings(port))

    def healthy(self, port, worker):
        self.until(lambda: self.healthcheck(port).returncode == 0 or worker.poll() is not None)
        return self.healthcheck(port)

    def until(self, is_so):
        end = time.monotonic() + 60
        while not is_so():
            self.assertLess(time.monotonic(), end, "not within a minute")
            time.sleep(0.2)


class Cuda(Cpu):
    target = "cuda"

    def elsewhere(self, path):
        if path.name == "libonnxruntime_providers_tensorrt.so":
            return TENSORRT
        return DRIVER if path.is_relative_to("/usr/local/lib") else set()

    def runtime(self):
        return "onnxruntime-gpu"

    def test_what_it_asks_nvidias_toolkit_for(self):
        environment = self.image.config["env"]
        self.assertEqual(environment["NVIDIA_VISIBLE_DEVICES"], "all")
        self.assertEqual(environment["NVIDIA_DRIVER_CAPABILITIES"], "compute,utility")

    def test_a_machine_without_a_gpu_is_told_so(self):
        settings = {**self.settings(free_port()), "FUSIONCAP_RUNTIME__PROVIDERS": "cuda"}
        told = self.image.run("worker", environment=settings)
        self.assertEqual(told.returncode, 1, told.stderr)
        self.assertRegex(told.stderr, r"(?i)cuda")


def part_of(path):
    places = {MODEL: "model", BINARY: "binary", "/usr/local/lib/onnxruntime": "ONNX Runtime",
              "/usr/local/lib/cuda": "NVIDIA's libraries", f"/{BILL}": "bill of materials"}
    return next((part for place, part in places.items() if path == place or path.startswith(f"{place}/")), "Debian")


def tls_server(stack, folder):
    """A server whose own certificate, `folder`/certificate, is all there is to trust: its port, and
    what it has said so far."""
    port, key = free_port(), folder / "key"
    certificate, log = folder / "certificate", stack.enter_context(open(folder / "log", "w"))
    call("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate,
         stderr=subprocess.DEVNULL)
    server = stack.enter_context(subprocess.Popen(
        ["openssl", "s_server", "-brief", "-accept", str(port), "-cert", certificate, "-key", key],
        stdin=subprocess.PIPE, stdout=log, stderr=log))
    stack.callback(server.kill)
    for _ in range(50):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return port, (folder / "log").read_text
        time.sleep(0.1)
    raise AssertionError("openssl s_server does not listen")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
