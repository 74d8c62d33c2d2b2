"""What the dashboard takes from others than the workers, with the names that those give it.

There is no cluster here, so there is neither cAdvisor nor kube-state-metrics, and no Kafka
exporter. The figures are real all the same: the lag as the brokers tell it, the memory as the kernel
does. Only the limit is made up.
"""

import http.server
import os
import threading
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

LIMIT_BYTES = 1 << 30


class Exporter:
    def __init__(self, world, group, topic, namespace):
        self._world, self._group, self._topic, self._namespace = world, group, topic, namespace
        self._lag = {}
        # It asks for the group's offsets and never joins it.
        self._consumer = Consumer({"bootstrap.servers": world.kafka, "group.id": group, "log_level": 0})
        threading.Thread(target=self._ask, daemon=True).start()
        exporter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write("".join(f"{line}\n" for line in exporter.lines()).encode())

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.port = server.server_address[1]

    def _ask(self):
        while True:
            try:
                partitions = self._consumer.list_topics(self._topic, 5).topics[self._topic].partitions
                wanted = [TopicPartition(self._topic, number) for number in partitions]
                for one in self._consumer.committed(wanted, timeout=5):
                    low, high = self._consumer.get_watermark_offsets(one, timeout=5)
                    self._lag[one.partition] = high - max(one.offset, low)
            except KafkaException:
                # The broker is away: an exporter has nothing to tell then.
                self._lag = {}
            time.sleep(1)

    def lines(self):
        for partition, lag in sorted(self._lag.items()):
            labels = f'consumergroup="{self._group}",topic="{self._topic}",partition="{partition}"'
            yield f"kafka_consumergroup_lag{{{labels}}} {lag}"
        for name, process in list(self._world.processes.items()):
            if not name.startswith("cap-fusioncap-"):
                continue
            labels = f'namespace="{self._namespace}",pod="{name}",container="worker"'
            yield f"container_memory_working_set_bytes{{{labels}}} {resident_bytes(process.pid)}"
            yield f'kube_pod_container_resource_limits{{{labels},resource="memory"}} {LIMIT_BYTES}'


def resident_bytes(pid):
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
