"""captions.out into a lake in each of the ways of docs/lake.md: `lake.py [duckdb|connect|spark]...`.

A worker captions photos into a real Kafka, and a transaction of somebody else's is aborted beside
it. Then each way reads the topic by the very files in docs/lake, and its table must hold every
caption once, value for value. Connect and Spark are killed in the middle and started again.
"""

import datetime
import json
import os
import subprocess
import sys
import time

import duckdb
from confluent_kafka import Producer

import load
from lake_schema import LAKE, iceberg_schema
from world import World, free_port, wait_for

REFERENCES = 60
WAYS = ("duckdb", "connect", "spark")


class Lake:
    def __init__(self, world):
        self.world = world
        self.folder = world.folder / "lake"
        self.folder.mkdir()
        self.asked = 0

    def caption(self, count):
        """Sends so many references more and waits until all so far are captioned."""
        load.send(self.world.kafka, [json.dumps({"uri": f"s3://photos/{load.key(self.asked + number)}",
                                                 "attributes": {"album": f"a{number % 3}"}})
                                     for number in range(count)])
        self.asked += count
        wait_for(f"{self.asked} captions", lambda: len(self.records()) == self.asked)

    def abort_one(self):
        """A caption that nobody may see, in the topic for good."""
        producer = Producer({"bootstrap.servers": self.world.kafka, "transactional.id": "another", "log_level": 0})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce("captions.out", json.dumps({**self.records()[0], "id": "never"}), "never")
        producer.flush(30)
        producer.abort_transaction(30)

    def records(self):
        return [json.loads(value) for value in self.world.records("captions.out")]

    def compare(self, rows):
        """`rows` against the topic, value for value."""
        wanted = {record["id"]: record for record in self.records()}
        assert len(rows) == len(wanted) == self.asked, f"{len(rows)} rows, {len(wanted)} captions, {self.asked} asked"
        for row in rows:
            record = wanted.pop(row["id"])
            for name, value in record.items():
                assert plain(row[name]) == value, f"{name}: {row[name]!r}, not {value!r}"
            assert row.get("embedding") is None
        assert not wanted
        return len(rows)


def plain(value):
    """As JSON has it."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return dict(value) if isinstance(value, list) else value


def java(classpath, *words):
    return ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath, *words]


def read_parquet(connection, files):
    cursor = connection.execute(f"SELECT * FROM read_parquet({files!r})")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor.fetchall()]


def duckdb_(lake):
    command = java(f"{os.environ['CONNECT_JARS']}/*", "org.apache.kafka.tools.consumer.ConsoleConsumer",
                   "--bootstrap-server", lake.world.kafka, "--topic", "captions.out", "--from-beginning",
                   "--isolation-level", "read_committed", "--timeout-ms", "8000")
    with open(lake.folder / "captions.jsonl", "wb") as lines:
        # It ends with the time-out, which is no failure here.
        subprocess.run(command, stdout=lines, check=False)
    os.chdir(lake.folder)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute((LAKE / "captions.duckdb.sql").read_text())
    print(connection.sql("SELECT caption, score, captioned_at, attributes FROM captions ORDER BY score DESC LIMIT 3"))
    return lake.compare(read_parquet(connection, "captions.parquet"))


def filled_in(lake, name, rest_port):
    """A file of docs/lake with its capitals filled in, and what only haste needs on top."""
    text = (LAKE / name).read_text()
    for word, value in (("BROKERS", lake.world.kafka), ("FOLDER", str(lake.folder)), ("REST_PORT", str(rest_port))):
        text = text.replace(word, value)
    path = lake.folder / name
    path.write_text(text.replace("interval-ms=300000", "interval-ms=4000"))
    return path


def connect(lake):
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import DayTransform

    lake.world.create_topics(["control-iceberg"], 1)
    catalog = SqlCatalog("lake", uri=f"sqlite:///{lake.folder}/catalog.db", warehouse=f"file://{lake.folder}/warehouse")
    catalog.create_namespace("lake")
    schema = iceberg_schema()
    day = PartitionField(schema.find_field("captioned_at").field_id, 1000, DayTransform(), "captioned_at_day")
    catalog.create_table("lake.captions", schema, partition_spec=PartitionSpec(day))
    port = free_port()
    files = [filled_in(lake, name, port) for name in ("connect-worker.properties", "connect-iceberg.properties")]
    command = java(f"{os.environ['CONNECT_JARS']}/*", "org.apache.kafka.connect.cli.ConnectStandalone", *files)

    def rows():
        return catalog.load_table("lake.captions").scan().to_arrow().to_pylist()

    lake.world.start("connect", command)
    wait_for("rows of the sink", lambda: alive(lake, "connect") and len(rows()) == lake.asked, 120)
    lake.caption(REFERENCES)
    # Somewhere between reading and committing.
    time.sleep(2)
    lake.world.kill("connect")
    lake.world.start("connect", command)
    wait_for("the other rows", lambda: alive(lake, "connect") and len(rows()) >= lake.asked, 120)
    # Time for it to add what it should not.
    time.sleep(10)
    lake.world.kill("connect")
    table = catalog.load_table("lake.captions")
    print(f"{len(table.snapshots())} snapshots, partitioned by {table.spec().fields[0].name}")
    return lake.compare(rows())


def alive(lake, name):
    if lake.world.processes[name].poll() is not None:
        raise RuntimeError(f"{name} ended:\n{lake.world.log(name)[-3000:]}")
    return True


def spark(lake):
    output, checkpoint = lake.folder / "spark", lake.folder / "checkpoint"
    jars = ",".join(entry.path for entry in os.scandir(os.environ["SPARK_JARS"]) if entry.name.endswith(".jar"))
    submit = os.path.join(os.path.dirname(sys.executable), "spark-submit")
    settings = {"spark.driver.memory": "1g", "spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "1",
                "spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
    command = [submit, "--master", "local[2]", "--jars", jars]
    command += [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    command += [LAKE / "captions_spark.py", lake.world.kafka, LAKE / "captions.sql", output, checkpoint]
    environment = {"PYSPARK_PYTHON": sys.executable}
    lake.world.start("spark", command, environment)
    wait_for("a batch of Spark's", lambda: alive(lake, "spark") and list(output.glob("*.parquet")), 180)
    lake.caption(REFERENCES)
    lake.world.kill("spark")
    lake.world.start("spark", [*command, "once"], environment)
    code = lake.world.processes["spark"].wait(180)
    assert code == 0, lake.world.log("spark")[-3000:]
    return lake.compare(read_parquet(duckdb.connect(), committed_files(output)))


def committed_files(output):
    """The files that Spark's own log of the output names: others may be left from what was killed."""
    files = []
    for batch in sorted(path for path in (output / "_spark_metadata").iterdir() if path.name.isdigit()):
        for line in batch.read_text().splitlines()[1:]:
            files.append(json.loads(line)["path"].removeprefix("file://"))
    return files


def main():
    chosen = sys.argv[1:] or WAYS
    failed = 0
    with World() as world:
        load.fill(world)
        lake = Lake(world)
        world.worker("cap-0")
        lake.caption(REFERENCES)
        lake.abort_one()
        for way in chosen:
            begun = time.monotonic()
            try:
                rows = {"duckdb": duckdb_, "connect": connect, "spark": spark}[way](lake)
                print(f"{way}: {rows} captions, each once, {time.monotonic() - begun:.0f} s", flush=True)
            except (AssertionError, RuntimeError, TimeoutError) as error:
                failed += 1
                print(f"{way}: {error}", flush=True)
                for name in ("connect", "spark"):
                    if way == name and name in world.processes:
                        print(world.log(name)[-6000:], flush=True)
    print(f"lake: {len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
