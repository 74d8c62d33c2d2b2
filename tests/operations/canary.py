"""The canary of docs/operations.md: a second bundle in a group of its own beside the one that serves.

References from before the canary are left alone; those after it are captioned by both bundles, each
exactly once, and docs/lake/canary.duckdb.sql compares the two.
"""

import json
import os
import subprocess
import sys

import duckdb

import load
from lake_schema import LAKE
from world import ROOT, World, wait_for

REFERENCES = 52
GROUP = ("kafka.group=fusioncap-canary", "kafka.output_topic=captions.canary",
         "kafka.dead_letter_topic=images.dlq.canary")


def tool(world, name, *words):
    """One of Kafka's own tools."""
    command = ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp",
               f"{os.environ['CONNECT_JARS']}/*", f"org.apache.kafka.tools.consumer.{name}", "--bootstrap-server",
               world.kafka, *words]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout


def send(world):
    load.send(world.kafka, [load.photo(number) for number in range(REFERENCES)])


def verified(world, *settings, begin=()):
    bounds = [word for bound in begin for word in ("--from", bound)]
    return world.run(["verify", "--committed", "--json", *bounds], *settings, kafka_alone=True)


def answered(world, wanted, *settings, begin=()):
    code, told = verified(world, *settings, begin=begin)
    return code == 0 and json.loads(told)["total"]["captions"] == wanted


def main():
    with World(partitions=2, topics=("images.in", "captions.out", "images.dlq", "captions.canary",
                                     "images.dlq.canary")) as world:
        load.fill(world)
        world.worker("serving-0")
        send(world)
        wait_for("the first captions", lambda: answered(world, REFERENCES))
        offsets = tool(world, "group.ConsumerGroupCommand", "--group", "fusioncap-canary", "--topic", "images.in",
                       "--reset-offsets", "--to-latest", "--execute")
        print(offsets)
        begin = [f"{fields[2]}={fields[3]}" for fields in map(str.split, offsets.splitlines())
                 if fields[:2] == ["fusioncap-canary", "images.in"]]
        assert len(begin) == 2, offsets
        world.worker("canary-0", *GROUP, f"model.path={ROOT / 'models' / 'random'}")
        send(world)
        wait_for("the canary's captions", lambda: answered(world, REFERENCES, *GROUP, begin=begin))
        wait_for("the others", lambda: answered(world, 2 * REFERENCES))
        assert world.stop("canary-0") == 0
        print(world.run(["verify", "--committed", *(word for one in begin for word in ("--from", one))], *GROUP,
                        kafka_alone=True)[1])
        for topic, file in (("captions.out", "captions.jsonl"), ("captions.canary", "canary.jsonl")):
            lines = tool(world, "ConsoleConsumer", "--topic", topic, "--from-beginning", "--isolation-level",
                         "read_committed", "--timeout-ms", "8000")
            (world.folder / file).write_text(lines)
        os.chdir(world.folder)
        connection = duckdb.connect()
        for statement in duckdb.extract_statements((LAKE / "canary.duckdb.sql").read_text()):
            result = connection.sql(statement.query)
            if result is not None and len(result):
                print(result)
        pairs, = connection.execute("SELECT count(*) FROM pairs").fetchone()
    print(f"canary: {int(pairs == REFERENCES)} passed, {int(pairs != REFERENCES)} failed ({pairs} pairs)")
    return 0 if pairs == REFERENCES else 1


if __name__ == "__main__":
    sys.exit(main())
