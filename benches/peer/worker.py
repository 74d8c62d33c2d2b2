#!/usr/bin/env python3
"""The same work as `fusioncap worker`, as a script: what one writes first, with the usual packages.

References come from Kafka; a pool of threads fetches and decodes the batches ahead while ONNX
Runtime captions the batch at hand; captions and offsets are committed in one transaction a batch.
There is no dead-letter record beyond a line of JSON, no retry of its own, no backpressure by bytes,
no metrics. Credentials and endpoint are boto3's own: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL_S3, AWS_DEFAULT_REGION.

`worker.py --model DIR --images FILE...` captions files instead, one a line.
"""

import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

DEAD = np.float32(-1e9)
THREADS = 16
# Batches that are fetched and decoded ahead of the one being captioned.
AHEAD = 2


class Preprocessor:
    """CLIP's, as preprocessor_config.json says; the image is squashed to the size, not cropped."""

    def __init__(self, folder, draft):
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        assert settings["do_resize"] and not settings["do_center_crop"]
        self.size = (settings["size"]["width"], settings["size"]["height"])
        self.resample = Image.Resampling(settings["resample"])
        mean, deviation = np.float32(settings["image_mean"]), np.float32(settings["image_std"])
        self.scale = np.float32(settings["rescale_factor"]) / deviation
        self.shift = -mean / deviation
        self.draft = draft

    def __call__(self, data):
        image = Image.open(io.BytesIO(data))
        content_type = Image.MIME[image.format]
        width, height = image.size
        if self.draft:
            image.draft("RGB", self.size)
        image = ImageOps.exif_transpose(image).convert("RGB").resize(self.size, self.resample)
        pixels = np.asarray(image, dtype=np.float32) * self.scale + self.shift
        return pixels.transpose(2, 0, 1), width, height, content_type


class Captioner:
    """Vision tower, prefix, and a decoder that is asked step by step by a beam search."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.settings = json.loads((folder / "generation_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.vision, self.prefix, self.decoder = (
            onnxruntime.InferenceSession(
                folder / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"]
            )
            for name in ("vision", "prefix", "decoder")
        )

    def __call__(self, pixels):
        """Text and mean log-probability of a token for each image of `[batch, 3, height, width]`."""
        names = [value.name for value in self.prefix.get_inputs()]
        seen = self.vision.run(names, {"pixel_values": pixels})
        [prefix] = self.prefix.run(["prefix"], dict(zip(names, seen)))
        return [self.read(image) for image in self.search(prefix)]

    def read(self, hypothesis):
        tokens, score, length = hypothesis
        text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return text, round(float(score) / max(length, 1), 4)

    def search(self, prefix):
        config, settings = self.config, self.settings
        batch, beams = len(prefix), settings["num_beams"]
        heads = config["num_attention_heads"]
        head = config["hidden_size"] // heads
        images = [Beams(config, settings) for _ in range(batch)]
        feeds = {
            "prefix": prefix,
            "past": np.zeros((2 * config["num_hidden_layers"], batch, heads, 0, head), np.float32),
            "input_ids": np.full((batch, 1), config["bos_token_id"], np.int64),
            "parents": np.arange(batch),
            "beam_scores": np.zeros((batch, 1), np.float32),
            "banned_ids": self.ban([[config["eos_token_id"]]] * batch),
        }
        names = ["scores", "tokens", "candidate_parents", "present"]
        width = 1
        longest = min(settings["max_new_tokens"], config["max_length"] - 1)
        for length in range(1, longest + 1):
            scores, tokens, parents, present = self.decoder.run(names, feeds)
            for image, *found in zip(images, scores, tokens.tolist(), parents.tolist()):
                if not image.done:
                    image.advance(*found, length)
            if all(image.done for image in images):
                break
            rows = [row for image in images for row in image.rows()]
            owners = np.repeat(np.arange(batch) * width, beams)
            feeds = {
                "prefix": np.zeros((batch * beams, 0, config["hidden_size"]), np.float32),
                "past": present,
                "input_ids": np.array([[said[-1]] for said, _, _ in rows], np.int64),
                "parents": owners + np.array([parent for _, _, parent in rows]),
                "beam_scores": np.array([score for _, score, _ in rows], np.float32)
                .reshape(batch, beams),
                "banned_ids": self.ban([self.repeats(said) for said, _, _ in rows]),
            }
            width = beams
        return [image.best() for image in images]

    def ban(self, rows):
        config = self.config
        banned = np.full((len(rows), config["max_length"] + 2), config["pad_token_id"], np.int64)
        for row, ids in zip(banned, rows):
            ids = [config["bos_token_id"], *ids][: len(row)]
            row[: len(ids)] = ids
        return banned

    def repeats(self, said):
        """The tokens that would complete an n-gram that was said before."""
        size = self.settings["no_repeat_ngram_size"]
        if size == 0 or len(said) < size:
            return []
        ending = said[len(said) + 1 - size :]
        starts = range(len(said) - size + 1)
        return [said[at + size - 1] for at in starts if said[at : at + size - 1] == ending]


class Beams:
    """One image's beams: `(tokens, score, parent)`, best first, and its finished captions."""

    def __init__(self, config, settings):
        self.width, self.penalty = settings["num_beams"], settings["length_penalty"]
        self.eos, self.pad = config["eos_token_id"], config["pad_token_id"]
        self.live, self.finished, self.done = [], [], False

    def rows(self):
        return self.live + [([self.pad], DEAD, 0)] * (self.width - len(self.live))

    def rank(self, score, length):
        return score / np.float32(max(length, 1)) ** np.float32(self.penalty)

    def advance(self, scores, tokens, parents, length):
        following = []
        for rank, (score, token, parent) in enumerate(zip(scores, tokens, parents)):
            if not score > DEAD / 2 or len(following) == self.width:
                break
            said = self.live[parent][0] if self.live else []
            if token != self.eos:
                following.append(([*said, token], score, parent))
            elif rank < self.width:
                self.finished.append((said, score, length))
        self.finished.sort(key=lambda caption: -self.rank(*caption[1:]))
        del self.finished[self.width :]
        self.live = following
        self.done = not following or self.decided(length)

    def decided(self, length):
        if len(self.finished) < self.width:
            return False
        return self.rank(self.live[0][1], length) <= self.rank(*self.finished[-1][1:])

    def best(self):
        if self.finished:
            return self.finished[0]
        if self.live:
            said, score, _ = self.live[0]
            return said, score, len(said)
        return [], 0.0, 0


class Loader:
    """A message of images.in to its image: runs on the pool's threads."""

    def __init__(self, preprocess):
        import boto3
        from botocore.config import Config

        self.preprocess = preprocess
        self.s3 = boto3.client(
            "s3", config=Config(max_pool_connections=THREADS, s3={"addressing_style": "path"})
        )

    def __call__(self, message):
        uri = None
        try:
            uri = json.loads(message.value())["uri"]
            bucket, key = uri.removeprefix("s3://").split("/", 1)
            answer = self.s3.get_object(Bucket=bucket, Key=key)
            pixels, width, height, content_type = self.preprocess(answer["Body"].read())
        except Exception as error:
            return None, {"uri": uri, "reason": f"{type(error).__name__}: {error}"}
        return pixels, {
            "uri": uri,
            "bucket": bucket,
            "key": key,
            "version_id": answer.get("VersionId"),
            "etag": answer["ETag"].strip('"'),
            "content_type": content_type,
            "width": width,
            "height": height,
        }


class Worker:
    def __init__(self, arguments):
        from confluent_kafka import Consumer, Producer

        self.arguments = arguments
        self.captioner = Captioner(arguments.model)
        self.load = Loader(Preprocessor(arguments.model, arguments.draft))
        self.pool = ThreadPoolExecutor(THREADS)
        self.consumer = Consumer(
            {
                "bootstrap.servers": arguments.brokers,
                "group.id": arguments.group,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "cooperative-sticky",
            }
        )
        self.consumer.subscribe([arguments.input])
        self.producer = Producer(
            {
                "bootstrap.servers": arguments.brokers,
                "transactional.id": arguments.transactional_id or arguments.group,
                "compression.type": "zstd",
                "linger.ms": 5,
            }
        )
        self.producer.init_transactions()

    def run(self):
        """Until --count messages are done or none came for --idle seconds."""
        ahead, done, heard = collections.deque(), 0, time.monotonic()
        print("ready", flush=True)
        while self.arguments.count is None or done < self.arguments.count:
            while len(ahead) <= AHEAD:
                # With work at hand a short wait is enough; it is also how long a batch may fill.
                messages = self.consumer.consume(self.arguments.batch, 0.02 if ahead else 0.1)
                if not messages:
                    break
                for message in messages:
                    if message.error():
                        raise SystemExit(f"Kafka: {message.error()}")
                ahead.append([(message, self.pool.submit(self.load, message)) for message in messages])
            if ahead:
                batch = ahead.popleft()
                self.commit(*self.caption([(message, load.result()) for message, load in batch]))
                done, heard = done + len(batch), time.monotonic()
            elif time.monotonic() - heard > self.arguments.idle:
                break
        self.consumer.close()

    def caption(self, batch):
        """The records for captions and for failures."""
        loaded = [(message, pixels, about) for message, (pixels, about) in batch]
        good = [entry for entry in loaded if entry[1] is not None]
        failed = [(message, about) for message, pixels, about in loaded if pixels is None]
        texts = self.captioner(np.stack([pixels for _, pixels, _ in good])) if good else []
        records = []
        for (message, _, about), (text, score) in zip(good, texts):
            now = datetime.datetime.now(datetime.timezone.utc)
            record = {
                "id": f"{message.topic()}/{message.partition()}/{message.offset()}",
                **about,
                "caption": text,
                "score": score,
                "model_name": self.captioner.config["name"],
                "model_version": self.captioner.config["version"],
                "source_topic": message.topic(),
                "source_partition": message.partition(),
                "source_offset": message.offset(),
                "captioned_at": now.isoformat().replace("+00:00", "Z"),
            }
            records.append((message, record))
        return [message for message, _, _ in loaded], records, failed

    def commit(self, messages, records, failed):
        """Any error ends the script; the next run goes on from what was committed."""
        from confluent_kafka import TopicPartition

        following = {}
        for message in messages:
            place = (message.topic(), message.partition())
            following[place] = max(following.get(place, 0), message.offset() + 1)
        offsets = [TopicPartition(*place, offset) for place, offset in following.items()]
        self.producer.begin_transaction()
        topics = ((self.arguments.output, records), (self.arguments.dead_letters, failed))
        for topic, answers in topics:
            for message, record in answers:
                self.producer.produce(topic, json.dumps(record), message.key())
        group = self.consumer.consumer_group_metadata()
        self.producer.send_offsets_to_transaction(offsets, group)
        self.producer.commit_transaction()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--images", nargs="+", type=pathlib.Path, help="caption these files and end")
    parser.add_argument("--brokers", default=os.environ.get("BROKERS", "localhost:9092"))
    parser.add_argument("--input", default="images.in")
    parser.add_argument("--output", default="captions.out")
    parser.add_argument("--dead-letters", default="images.dlq")
    parser.add_argument("--group", default="peer")
    parser.add_argument("--transactional-id", help="default: the group")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, help="end after so many messages")
    parser.add_argument("--idle", type=float, default=60.0, help="end after so many quiet seconds")
    parser.add_argument("--draft", action="store_true", help="let libjpeg shrink while it decodes")
    arguments = parser.parse_args()
    if not arguments.images:
        return Worker(arguments).run()
    preprocess = Preprocessor(arguments.model, arguments.draft)
    captioner = Captioner(arguments.model)
    for start in range(0, len(arguments.images), arguments.batch):
        files = arguments.images[start : start + arguments.batch]
        pixels = np.stack([preprocess(file.read_bytes())[0] for file in files])
        for file, (text, score) in zip(files, captioner(pixels)):
            print(f"{file}\t{text}\t{score:.4f}")


if __name__ == "__main__":
    main()
