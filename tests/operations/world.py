"""What the checks of the guide run on: a real Kafka, a real S3 server, workers, Prometheus.

Everything is a process of its own on this machine, with its files in one folder, and is gone when
the `World` is left. `scripts/operations` says where the programs are, in the environment.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "samples").glob("*.jpg"))
BINARY = os.environ["FUSIONCAP"]
TOPICS = ("images.in", "captions.out", "images.dlq")
# Of the S3 server, which is nobody else's and is gone in a minute.
KEYS = {"AWS_ACCESS_KEY_ID": "guide", "AWS_SECRET_ACCESS_KEY": "guide-guide-guide"}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_for(what, ask, seconds=90):
    """Asks until the answer is true; gives it back."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not come about in {seconds} s")


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


class Processes(contextlib.AbstractContextManager):
    """Programs that run until it is left, with their logs in one folder."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="fusioncap-operations-"))
        self.processes = {}
        # What ends the checks from outside must not leave a Kafka behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def __exit__(self, *_):
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                # Stopped ones get the signal that ends them only once they go on.
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name, command, environment=None, ready=None):
        """Starts a process; where `ready` is an address or a question, returns once that answers."""
        log = open(self.folder / f"{name}.log", "ab")
        settings = {**os.environ, **(environment or {})}
        # Gone with this process, however that one ends.
        command = ["setpriv", "--pdeathsig", "KILL", *command]
        process = subprocess.Popen([str(word) for word in command], env=settings, stdout=log, stderr=log,
                                   stdin=subprocess.DEVNULL)
        log.close()
        self.processes[name] = process

        def is_ready():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{self.log(name)[-2000:]}")
            return ready() if callable(ready) else answers(ready)

        if ready:
            wait_for(f"an answer of {name}", is_ready)
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def signal(self, name, number):
        self.processes[name].send_signal(number)

    def stop(self, name, seconds=60):
        """SIGTERM; the exit code."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(seconds)

    def kill(self, name):
        process = self.processes.pop(name)
        process.kill()
        process.wait()


class World(Processes):
    """Kafka and the S3 server listen at `address`."""

    def __init__(self, partitions=6, topics=TOPICS, address="127.0.0.1"):
        super().__init__()
        self.address = address
        try:
            self.kafka = self._kafka("up", "--until-exit-of", str(os.getpid()), "--address", address).strip()
            self.admin = AdminClient({"bootstrap.servers": self.kafka, "log_level": 0})
            self.create_topics(topics, partitions)
            self.store = f"http://{address}:{self._store()}"
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        with contextlib.suppress(subprocess.CalledProcessError):
            self._kafka("down")
        super().__exit__()

    def _kafka(self, command, *arguments):
        state = ["--state", str(self.folder / "kafka")]
        done = subprocess.run([ROOT / "scripts" / "kafka", command, *arguments, *state],
                              stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def broker(self, command):
        """`stop`, `start` or `kill` for the only broker."""
        self._kafka(command, "1")

    def create_topics(self, names, partitions):
        made = self.admin.create_topics([NewTopic(name, partitions, 1) for name in names])
        for future in made.values():
            future.result(30)

    def records(self, topic):
        """The values that a reader of committed records sees."""
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": "check", "log_level": 0,
                             "isolation.level": "read_committed", "auto.offset.reset": "earliest",
                             "enable.auto.commit": False, "enable.partition.eof": True})
        partitions = consumer.list_topics(topic, 30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        found, ended = [], set()
        while len(ended) < len(partitions):
            message = consumer.poll(10)
            if message is None:
                raise TimeoutError(f"{topic} can't be read to its end")
            if message.error():
                ended.add(message.partition())
            else:
                found.append(message.value().decode())
        consumer.close()
        return found

    # Buckets are folders, objects files: what lies there is served.
    def _store(self):
        port = free_port()
        for folder in ("store/photos", "metadata"):
            (self.folder / folder).mkdir(parents=True)
        gateway = [os.environ["VERSITYGW"], "--access", KEYS["AWS_ACCESS_KEY_ID"], "--secret",
                   KEYS["AWS_SECRET_ACCESS_KEY"], "--port", f"{self.address}:{port}", "--health", "/health", "--quiet",
                   "posix", "--sidecar", self.folder / "metadata", self.folder / "store"]
        self.start("store", gateway, ready=f"http://{self.address}:{port}/health")
        return port

    def put(self, key, content):
        path = self.folder / "store" / "photos" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def worker(self, name, *settings, port=None):
        """A worker called `name`, ready; the port of its metrics."""
        port = port or free_port()
        command = [BINARY, "worker"]
        for setting in self.settings(f"kafka.transactional_id={name}", f"http.listen=127.0.0.1:{port}", *settings):
            command += ["--set", setting]
        self.start(name, command, {**KEYS, "FUSIONCAP_LOG_FORMAT": "text"}, f"http://127.0.0.1:{port}/readyz")
        return port

    def settings(self, *more):
        return (f"kafka.brokers={self.kafka}", f"s3.endpoint={self.store}", "s3.force_path_style=true",
                "s3.allowed_buckets=photos", f"model.path={ROOT / 'models' / 'tiny'}", *more)

    def run(self, command, *settings, kafka_alone=False):
        """A command of the worker's own binary to its end: (exit code, what it printed)."""
        chosen = (f"kafka.brokers={self.kafka}", *settings) if kafka_alone else self.settings(*settings)
        flags = [word for setting in chosen for word in ("--set", setting)]
        done = subprocess.run([BINARY, *command, *flags], env={**os.environ, **KEYS}, capture_output=True, text=True,
                              check=False)
        return done.returncode, done.stdout + done.stderr
