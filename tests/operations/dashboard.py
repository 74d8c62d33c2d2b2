"""The dashboard over a real run: every query of every panel is evaluated, and none may be empty.

Workers caption the sample photos from a real Kafka and a real S3 server while things go wrong on
purpose: a rush, a store that hangs, a broker that goes away, a worker that is killed. A real
Prometheus scrapes them and evaluates the alerts' rules beside. `--picture FILE` draws what the
panels show; `--short` is a minute without the broker's outage and draws nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import yaml

import load
import picture
from exporter import Exporter
from panels import Prometheus
from world import ROOT, World, free_port, wait_for

SCRAPE_SECONDS = 2
NAMESPACE = "captions"
SETTINGS = (
    "kafka.properties={session.timeout.ms: 9000, heartbeat.interval.ms: 1000, transaction.timeout.ms: 8000}",
    "limits.max_in_flight=96", "batch.size=8", "s3.timeout_ms=1500", "s3.max_attempts=3",
)


class Run:
    def __init__(self, world):
        self.world = world
        self.ports = {}
        self.events = []  # (time, what)

    def worker(self, number):
        name = f"cap-fusioncap-{number}"
        port = self.world.worker(name, f"kafka.group_instance_id={name}", *SETTINGS, port=self.ports.get(name))
        if name not in self.ports:
            self.ports[name] = port
            self.targets()

    def targets(self):
        groups = [{"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": NAMESPACE, "pod": name}}
                  for name, port in self.ports.items()]
        path = self.world.folder / "targets.json"
        path.with_suffix(".new").write_text(json.dumps(groups))
        path.with_suffix(".new").rename(path)

    def happened(self, what):
        self.events.append((time.time(), what))
        print(f"{time.time() - self.events[0][0]:5.0f} s  {what}", flush=True)


def start_prometheus(world, exporter):
    rules = world.folder / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": rendered_rules()}))
    configuration = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "scrape_timeout": "1s", "evaluation_interval": "5s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "workers",
             "file_sd_configs": [{"files": [str(world.folder / "targets.json")], "refresh_interval": "2s"}]},
            {"job_name": "others", "honor_labels": True,
             "static_configs": [{"targets": [f"127.0.0.1:{exporter.port}"]}]}],
    }
    path = world.folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(configuration))
    listen = f"127.0.0.1:{free_port()}"
    world.start("prometheus", [os.environ["PROMETHEUS"], f"--config.file={path}", f"--web.listen-address={listen}",
                               f"--storage.tsdb.path={world.folder / 'prometheus-data'}"],
                ready=f"http://{listen}/-/ready")
    return Prometheus(f"http://{listen}", SCRAPE_SECONDS)


def rendered_rules():
    """The chart's PrometheusRule, in the form that Prometheus reads."""
    command = [os.environ["HELM"], "template", "cap", ROOT / "helm" / "fusioncap", "--namespace", NAMESPACE,
               # Without a cluster Helm takes an old Kubernetes for granted.
               "--kube-version", "1.33.0",
               "--show-only", "templates/prometheusrule.yaml", "--set", "prometheusRule.enabled=true",
               "--set", "prometheusRule.thresholds.lag=1000", "--set", "config.kafka.brokers=kafka:9092",
               "--set", "config.s3.allowed_buckets={photos}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return yaml.safe_load(text)["spec"]["groups"]


def play(run, sender, short):
    """Everything that happens; seconds from the beginning."""
    def at(seconds, short_seconds=None):
        if not short:
            load.until(begin, seconds)
        elif short_seconds is not None:
            load.until(begin, short_seconds)
        return not short or short_seconds is not None

    begin = time.time()
    run.happened("two workers")
    at(50, 12)
    run.happened("a rush")
    sender.rate = 60
    at(75, 16)
    run.worker(2)
    run.happened("a third worker")
    at(105, 24)
    sender.rate = 10
    run.happened("the rush is over")
    at(180, 32)
    run.world.signal("store", signal.SIGSTOP)
    run.happened("the store hangs")
    at(195, 40)
    run.world.signal("store", signal.SIGCONT)
    run.happened("the store answers")
    if at(235):
        run.happened("the broker goes away")
        run.world.broker("stop")
        at(250)
        run.world.broker("start")
        run.happened("the broker is back")
    at(290, 48)
    run.world.kill("cap-fusioncap-1")
    run.happened("a worker is killed")
    at(298, 52)
    run.worker(1)
    run.happened("it is back")
    at(350, 70)
    run.happened("end")
    return begin, time.time()


def main():
    parser = argparse.ArgumentParser(prog="make dashboard", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--short", action="store_true", help="a minute, no picture")
    parser.add_argument("--picture", metavar="FILE", help="where to draw the dashboard (SVG)")
    chosen = parser.parse_args()
    with World() as world:
        load.fill(world)
        run = Run(world)
        exporter = Exporter(world, "fusioncap", "images.in", NAMESPACE)
        run.targets()
        prometheus = start_prometheus(world, exporter)
        run.worker(0)
        run.worker(1)
        sender = load.Load(world.kafka, 10)
        sender.start()
        captioned = "sum(fusioncap_captions_total) > 0"
        wait_for("a first caption", lambda: prometheus.get("query", query=captioned)["result"])
        begin, end = play(run, sender, chosen.short)
        sender.stop()
        panels = prometheus.panels(begin, end, SCRAPE_SECONDS)
        alerts = prometheus.get("rules")["groups"]
        if chosen.picture:
            picture.draw(chosen.picture, panels, run.events, begin, end)
            print(f"picture: {chosen.picture}")
    return report(panels, alerts, sender.sent)


def report(panels, alerts, sent):
    graphs = [panel for panel in panels if panel.kind != "row"]
    empty = [f"{panel.title}: {legend}" for panel in graphs for legend in panel.empty]
    rules = [rule for group in alerts for rule in group["rules"]]
    unwell = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] != "ok"]
    for line in [*(f"empty: {one}" for one in empty), *(f"rule: {one}" for one in unwell)]:
        print(line)
    print(f"{sent} references, {sum(len(panel.series) for panel in graphs)} series, {len(rules)} rules evaluated")
    print(f"dashboard: {len(graphs) - sum(bool(panel.empty) for panel in graphs)} passed, "
          f"{sum(bool(panel.empty) for panel in graphs) + len(unwell)} failed")
    return 1 if empty or unwell or not graphs else 0


if __name__ == "__main__":
    sys.exit(main())
