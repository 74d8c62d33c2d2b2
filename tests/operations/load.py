"""References to the sample photos on images.in, at a rate that changes, with what goes wrong in life."""

import itertools
import json
import os
import random
import threading
import time

from confluent_kafka import Producer

from world import SAMPLES

PHOTOS = 400


def fill(world):
    """Photos under many keys, and some that are none."""
    for name, photo in zip(range(PHOTOS), itertools.cycle(SAMPLES)):
        path = world.folder / "store" / "photos" / key(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name < len(SAMPLES):
            path.write_bytes(photo.read_bytes())
        else:
            os.link(world.folder / "store" / "photos" / key(name % len(SAMPLES)), path)
    world.put("broken/half.jpg", SAMPLES[0].read_bytes()[:20_000])
    world.put("broken/page.jpg", b"<html><body>404 Not Found</body></html>")
    world.put("broken/empty.jpg", b"")


def key(number):
    return f"2024/{number:04}/{SAMPLES[number % len(SAMPLES)].name}"


def photo(number):
    return json.dumps({"uri": f"s3://photos/{key(number % PHOTOS)}"})


def broken(dice):
    return dice.choice((
        json.dumps({"uri": "s3://photos/broken/half.jpg"}), json.dumps({"uri": "s3://photos/broken/page.jpg"}),
        json.dumps({"uri": "s3://photos/broken/empty.jpg"}), json.dumps({"uri": "s3://photos/gone.jpg"}),
        json.dumps({"uri": "s3://others/cat.jpg"}), "no JSON"))


REMOVED = json.dumps({"Records": [{"eventName": "ObjectRemoved:Delete", "eventSource": "aws:s3", "s3": {
    "bucket": {"name": "photos"}, "object": {"key": "gone.jpg"}}}]})


class Load(threading.Thread):
    """Sends until it is stopped; `rate` is references a second and may be changed meanwhile."""

    def __init__(self, brokers, rate, topic="images.in"):
        super().__init__(daemon=True)
        self.rate = rate
        self.sent = 0
        self._topic = topic
        self._producer = Producer({"bootstrap.servers": brokers, "linger.ms": 20, "log_level": 0})
        self._ended = threading.Event()

    def run(self):
        dice, numbers, due = random.Random(1), itertools.count(), 0.0
        while not self._ended.wait(0.1):
            due += self.rate * 0.1
            while due >= 1:
                due -= 1
                self._one(dice, next(numbers))
        self._producer.flush(60)

    def _one(self, dice, number):
        chance = dice.random()
        if chance < 0.02:
            value = broken(dice)
        elif chance < 0.04:
            value = REMOVED
        elif chance < 0.10:
            # Once more what was asked for a moment ago: one reading answers both.
            value = photo(number - 1)
        else:
            value = photo(number)
        self._producer.produce(self._topic, value, str(number))
        self._producer.poll(0)
        self.sent += 1

    def stop(self):
        self._ended.set()
        self.join()


def send(brokers, values, topic="images.in"):
    """Sends these, and returns when they are there."""
    producer = Producer({"bootstrap.servers": brokers, "log_level": 0})
    for number, value in enumerate(values):
        producer.produce(topic, value, str(number))
    if producer.flush(60):
        raise TimeoutError("the brokers did not take every reference")


def until(begin, seconds):
    time.sleep(max(0, begin + seconds - time.time()))
