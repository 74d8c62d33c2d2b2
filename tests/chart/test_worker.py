"""The worker's own binary on what the chart renders: its configuration, its probes, its metrics."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

from chart import CHART, EXAMPLES, ROOT, Refused, environment, one, render, render_file
from test_telemetry import exposed

BINARY = os.environ.get("FUSIONCAP")
NO_BINARY = "there is no fusioncap in target/release, target/demo or target/debug, nor is FUSIONCAP set"
LIBRARIES = sorted((ROOT / ".tools" / "onnxruntime" / "lib").glob("libonnxruntime.so.*"))
# make sets the variable whether the library is there or not.
LIBRARY = next((path for path in [os.environ.get("ORT_DYLIB_PATH"), *LIBRARIES] if path and Path(path).exists()), None)


def variables(manifests):
    """The pod's environment, with a stand-in for what is secret, as a process sees it."""
    filled = {"POD_NAME": "cap-fusioncap-0"}
    for name, value in environment(manifests).items():
        if name != "POD_NAME":
            filled[name] = value.replace("$(POD_NAME)", filled["POD_NAME"]) if isinstance(value, str) else "stand-in"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FUSIONCAP", "OTEL_"))}
    return {**inherited, **filled}


def config_file(manifests, folder):
    (data,) = [m["data"]["worker.yaml"] for m in manifests if m["kind"] == "ConfigMap" and "worker.yaml" in m["data"]]
    path = Path(folder) / "worker.yaml"
    path.write_text(data)
    return path


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def smoke(port):
    """What the pod of `helm test` does, on this machine: (exit code, stdout, stderr)."""
    container = one(render({"smokeTest": {"timeoutSeconds": 1}}), "Pod")["spec"]["containers"][0]
    arguments = [f"--address=127.0.0.1:{port}" if word.startswith("--address=") else word for word in container["args"]]
    done = subprocess.run([BINARY, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@unittest.skipUnless(BINARY, NO_BINARY)
class Configuration(unittest.TestCase):
    def shown(self, manifests):
        with tempfile.TemporaryDirectory() as folder:
            path = config_file(manifests, folder)
            return subprocess.run([BINARY, "config", "--config", path], env=variables(manifests),
                                  capture_output=True, text=True, check=False)

    def test_the_worker_takes_every_example(self):
        for path in EXAMPLES:
            with self.subTest(path.name):
                done = self.shown(render_file(path))
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn("captions-cap-fusioncap-0", done.stdout)

    def test_the_worker_takes_the_shortest_grace(self):
        values = {"terminationGracePeriodSeconds": 35, "preStop": {"sleepSeconds": 5},
                  "config": {"runtime": {"drain_timeout_ms": 25000}}}
        done = self.shown(render(values))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("termination_grace_ms: 30000", done.stdout)

    def secret_fields(self):
        """Those whose value the worker hides where it complains of it: here, of a list."""
        schema = json.loads((CHART / "values.schema.json").read_text())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "worker.yaml"
            for section, found in schema["properties"]["config"]["properties"].items():
                for field, allowed in found["properties"].items():
                    if allowed["type"] != "string":
                        continue
                    path.write_text(json.dumps({section: {field: ["x"]}}))
                    done = subprocess.run([BINARY, "config", "--config", path], capture_output=True, text=True, check=False)
                    self.assertIn(f"{section}.{field} can't be", done.stderr)
                    if "******" in done.stderr:
                        yield section, field

    def test_what_the_worker_hides_the_chart_refuses(self):
        found = list(self.secret_fields())
        self.assertLess({("s3", "secret_access_key"), ("registry", "password")}, set(found))
        for section, field in found:
            variable = f"FUSIONCAP_{section}__{field}".upper()
            for values in ({"config": {section: {field: "x"}}}, {"extraEnv": [{"name": variable, "value": "x"}]}):
                with self.assertRaisesRegex(Refused, f"({section}.{field}|'{variable}') is secret"):
                    render(values)

    def test_the_worker_would_refuse_a_wrong_one(self):
        manifests = render()
        one(manifests, "ConfigMap")["data"]["worker.yaml"] += "\nruntime:\n  drain_timeout_ms: 26000\n"
        done = self.shown(manifests)
        self.assertEqual(done.returncode, 2)
        self.assertIn("runtime.drain_timeout_ms", done.stderr)


@unittest.skipUnless(BINARY, NO_BINARY)
@unittest.skipUnless(LIBRARY, "ONNX Runtime is not there (scripts/onnxruntime), nor is ORT_DYLIB_PATH set")
class Running(unittest.TestCase):
    def test_probes_and_metrics_are_where_the_chart_says(self):
        port = free_port()
        manifests = render({"config": {"http": {"listen": f"0.0.0.0:{port}"}, "kafka": {"brokers": "127.0.0.1:1"},
                                       "model": {"path": str(ROOT / "models" / "random")}}})
        with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+", encoding="utf-8") as log:
            command = [BINARY, "worker", "--config", config_file(manifests, folder)]
            settings = {**variables(manifests), "ORT_DYLIB_PATH": str(LIBRARY), "AWS_ACCESS_KEY_ID": "a",
                        "AWS_SECRET_ACCESS_KEY": "b"}
            process = subprocess.Popen(command, env=settings, stdout=log, stderr=log)
            try:
                self.eventually(f"http://127.0.0.1:{port}/livez", process, log)
                with self.assertRaises(urllib.error.HTTPError) as caught:
                    self.get(f"http://127.0.0.1:{port}/readyz")
                self.assertEqual(caught.exception.code, 503)
                text = self.get(f"http://127.0.0.1:{port}/metrics")
                shown = set(re.findall(r"^(fusioncap_\w+?)(?:\{.*)? ", text, re.MULTILINE))
                self.assertIn("fusioncap_captions_total", shown)
                self.assertLessEqual(shown, exposed()[0])
                code, _, errors = smoke(port)
                self.assertEqual(code, 1, errors)
                self.assertIn("status: 503, answer: not ready", errors)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)

    def get(self, url):
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()

    def eventually(self, url, process, log):
        for _ in range(300):
            try:
                return self.get(url)
            except OSError:
                if process.poll() is not None:
                    log.seek(0)
                    self.fail(log.read())
                time.sleep(0.2)
        self.fail(f"{url} does not answer")


@unittest.skipUnless(BINARY, NO_BINARY)
class Smoke(unittest.TestCase):
    """`helm test` against a server that answers as a ready worker does."""

    def serve(self, answers):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, text = answers[self.path]
                self.send_response(status)
                self.end_headers()
                # Whoever looks at the status alone does not wait for the rest.
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server.server_address[1]

    def test_a_ready_worker(self):
        port = self.serve({"/readyz": (200, "ready\n"), "/metrics": (200, "fusioncap_captions_total 0\n")})
        self.assertEqual(smoke(port), (0, "ready\n", ""))

    def test_a_worker_that_is_not_ready(self):
        port = self.serve({"/readyz": (503, "no broker"), "/metrics": (200, "fusioncap_captions_total 0\n")})
        self.assertEqual(smoke(port)[0], 1)

    def test_metrics_of_something_else(self):
        port = self.serve({"/readyz": (200, "ready"), "/metrics": (200, "go_goroutines 1\n")})
        code, _, errors = smoke(port)
        self.assertEqual(code, 1)
        self.assertIn("missing: fusioncap_captions_total", errors)
