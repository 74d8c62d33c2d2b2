"""docs/operations.md and docs/lake against the binary and the schemas: seconds, and no server.

Each message that the guide quotes is brought about with the worker's own binary; columns and types in
docs/lake are those of schemas/caption.v1.schema.json.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import duckdb

import lake_schema
from lake_schema import LAKE, wanted

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ["FUSIONCAP"]
GUIDE = (ROOT / "docs" / "operations.md").read_text()
GIVEN = ("--brokers", "127.0.0.1:1", "--listen", "127.0.0.1:0")


def config(*words):
    return ["config", *words]


def with_setting(setting):
    return ["config", "--brokers", "k:9092", "--model", "m", "--set", setting]


def worker(*words, model="bundle"):
    return ["worker", *GIVEN, "--model", model, *words]


# The message's beginning: what is run, what else is in the environment, and the exit code.
FAILURES = {
    "error: kafka.brokers is required": (config(), {}, 2),
    "error: batch.size can't be 0": (with_setting("batch.size=0"), {}, 2),
    "error: there is no field batch.sise": (with_setting("batch.sise=8"), {}, 2),
    "error: the environment variable": (config("--brokers", "k:9092", "--model", "m"), {"FUSIONCAP_BATCH_SIZE": "8"}, 2),
    "error: can't read the configuration file": (config("--config", "none.yaml"), {}, 2),
    "error: runtime.drain_timeout_ms": (with_setting("runtime.drain_timeout_ms=30000"), {}, 2),
    "error: kafka.properties.isolation.level":
        (with_setting("kafka.properties={isolation.level: read_uncommitted}"), {}, 2),
    "error: no S3 credentials":
        (worker(), {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}, 2),
    "error: model.path can't be": (worker(model="/nonexistent"), {}, 2),
    "error: a file of the bundle is missing": (worker(), {}, 1),
    "error: a file of the bundle is damaged": (worker(), {}, 1),
    "error: model.precision can't be": (worker("--set", "model.precision=int8"), {}, 2),
    "error: runtime.providers names": (worker("--set", "runtime.providers=[cuda]"), {}, 2),
    "error: ONNX Runtime's library": (worker(), {"ORT_DYLIB_PATH": "/nonexistent.so"}, 1),
    "error: http.listen can't be": (["config", "--brokers", "k:9092", "--model", "m", "--set", "http.listen=8080"], {}, 2),
    "error: the object store is not available":
        (worker("--set", "s3.endpoint=http://127.0.0.1:1", "--set", "s3.max_attempts=1", model="s3://models/tiny"), {}, 1),
    "error: no Kafka broker answers": (worker("--set", "kafka.connect_timeout_ms=0"), {}, 1),
}


def quoted():
    """First cells of the first table of "Common failures"."""
    section = GUIDE.split("\n## Common failures\n")[1].split("\nThese need ")[0]
    return [cell for _, cell in re.findall(r"^\| (``?)(error: .*?)\1 \|", section, re.MULTILINE)]


def spoil(bundle, beginning):
    if "missing" in beginning:
        (bundle / "tokenizer.json").unlink()
    elif "damaged" in beginning:
        with open(bundle / "README.md", "a", encoding="utf-8") as file:
            file.write("x")


class Messages(unittest.TestCase):
    def said(self, beginning):
        words, environment, code = FAILURES[beginning]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FUSIONCAP", "AWS_"))}
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "FUSIONCAP_LOG": "off"}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(ROOT / "models" / "random", Path(folder) / "bundle")
            spoil(Path(folder) / "bundle", beginning)
            done = subprocess.run([BINARY, *words], env={**clean, **keys, **environment}, cwd=folder,
                                  capture_output=True, text=True, check=False, timeout=120)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr

    def test_each_comes_out_as_quoted(self):
        messages = quoted()
        self.assertEqual(len(messages), len(FAILURES))
        for message in messages:
            (beginning,) = (one for one in FAILURES if message.startswith(one))
            with self.subTest(beginning):
                self.assertIn(message, self.said(beginning))

    def test_the_worker_still_has_the_words_of_the_others(self):
        source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.rs"))
        section = GUIDE.split("\nThese need ")[1]
        for words in ("a topic can't be used", "the object store is down: references wait",
                      "the object store refused the credentials", "another producer has this transactional id",
                      "another running worker has the same transactional id", "ONNX Runtime refuses the configuration"):
            self.assertIn(words, section)
            self.assertIn(words, source)

    def test_every_value_file_is_there(self):
        for path in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", GUIDE + (ROOT / "docs" / "lake.md").read_text()):
            self.assertTrue((ROOT / "docs" / path).exists(), path)


class Columns(unittest.TestCase):
    def test_the_iceberg_table_and_what_spark_reads(self):
        self.assertEqual(lake_schema.in_sql(), wanted(0))

    def test_duckdb(self):
        self.assertEqual(lake_schema.in_duckdb(), [(name, kind) for name, kind, _ in wanted(1)])

    def test_duckdb_takes_the_record_of_the_readme(self):
        record = re.search(r'^\{"id":"mine".*?\}\}$', (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL).group()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "captions.jsonl").write_text(record.replace("\n", "") + "\n")
            here = os.getcwd()
            os.chdir(folder)
            try:
                connection = duckdb.connect()
                connection.execute((LAKE / "captions.duckdb.sql").read_text())
                row = connection.execute("SELECT width, attributes, epoch_us(captioned_at) FROM captions").fetchone()
            finally:
                os.chdir(here)
        self.assertEqual(row, (64, {"album": "x"}, 1_795_436_455_377_211))

    def test_readers_see_committed_captions_alone(self):
        worker_settings = (LAKE / "connect-worker.properties").read_text()
        self.assertIn("\nconsumer.isolation.level=read_committed\n", worker_settings)
        self.assertIn('"kafka.isolation.level", "read_committed"', (LAKE / "captions_spark.py").read_text())


def main():
    result = unittest.main(module="guide", argv=["guide-test", *sys.argv[1:]], exit=False).result
    failed = len(result.failures) + len(result.errors)
    print(f"guide: {result.testsRun - failed} passed, {failed} failed")
    return 1 if failed or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
