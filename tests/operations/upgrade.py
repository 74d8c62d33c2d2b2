"""The upgrade and the roll-back of docs/operations.md, without a cluster: pod by pod, under load.

Two workers with static names, as the chart's StatefulSet has them, are replaced one after the other,
first by ones with another bundle and then by ones with the bundle from before, while references go
on coming. Every reference must have exactly one answer in the end, and no worker may take longer to
leave than it is granted.
"""

import sys
import time

import duckdb

import load
from world import ROOT, World, wait_for

NAMES = ("cap-fusioncap-0", "cap-fusioncap-1")
GRACE_SECONDS = 30
BUNDLES = ("tiny", "random", "tiny")


def start(world, name, bundle):
    world.worker(name, f"kafka.group_instance_id={name}", f"model.path={ROOT / 'models' / bundle}")


def replace(world, name, bundle):
    """As a StatefulSet does: the old one is gone before the new one comes."""
    begun = time.monotonic()
    code = world.stop(name, GRACE_SECONDS)
    left = time.monotonic() - begun
    start(world, name, bundle)
    print(f"{name}: left with {code} after {left:.1f} s, ready again with {bundle} "
          f"after {time.monotonic() - begun:.1f} s", flush=True)
    return code == 0


def verified(world):
    return world.run(["verify"], kafka_alone=True)


def main():
    with World() as world:
        load.fill(world)
        for name in NAMES:
            start(world, name, BUNDLES[0])
        sender = load.Load(world.kafka, 12)
        sender.start()
        time.sleep(5)
        orderly = []
        for bundle in BUNDLES[1:]:
            for name in NAMES:
                orderly.append(replace(world, name, bundle))
                time.sleep(3)
        sender.stop()
        wait_for("an answer to every reference", lambda: verified(world)[0] == 0)
        print(verified(world)[1])
        file = world.folder / "captions.jsonl"
        file.write_text("\n".join(world.records("captions.out")))
        found = duckdb.sql(f"SELECT model_name, count(*) AS captions, count(DISTINCT id) AS ids "
                           f"FROM read_json('{file}', format = 'newline_delimited') GROUP BY ALL ORDER BY ALL")
        print(found)
        rows = found.fetchall()
    passed = all(orderly) and len(rows) == 2 and all(captions == ids for _, captions, ids in rows)
    print(f"upgrade: {int(passed)} passed, {int(not passed)} failed ({sender.sent} messages)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
