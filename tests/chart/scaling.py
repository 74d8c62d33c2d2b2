"""A model of how the chart's autoscaling follows a load: topic, workers, KEDA and the
HorizontalPodAutoscaler, in steps of five seconds. What the chart decides is read from the objects that
it renders; what it does not decide stands here as constants. Python's standard library alone, but for
the rendering.
"""

import math
import random
from collections import deque

from chart import environment, one, render

STEP = 5
# Kubernetes' own: --horizontal-pod-autoscaler-sync-period and -tolerance.
SYNC = 15
TOLERANCE = 0.1
# From a new pod to its place in the group: a node, the image, the model.
POD_START = 60
# Nobody answers anything while the group is sorted anew, and the work in flight is done again.
REBALANCE = 5
# From a poll to the commit where a worker is not full.
IN_FLIGHT = 2
# session.timeout.ms, which the partitions of a static member that is gone wait for.
SESSION = 45
# WINDOW and SLOWEST of src/worker/consume/lag.rs.
PACE_WINDOW = 60
SLOWEST = 1e-3


class Chart:
    """What the chart renders for `keda`, a mapping of autoscaling.keda, as the model reads it."""

    def __init__(self, partitions, keda, least=1):
        values = {
            "partitions": partitions,
            "autoscaling": {"minReplicas": least, "keda": {"enabled": True, **keda}},
            "monitor": {"enabled": True},
        }
        manifests = render(values)
        spec = one(manifests, "ScaledObject")["spec"]
        self.partitions = partitions
        self.least, self.most = spec["minReplicaCount"], spec["maxReplicaCount"]
        self.polling, self.cooldown = spec["pollingInterval"], spec["cooldownPeriod"]
        self.behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self.lag = self.seconds = self.per_worker = self.activation = None
        for trigger in spec["triggers"]:
            settings = trigger["metadata"]
            if trigger["type"] == "kafka":
                self.lag = int(settings["lagThreshold"])
                self.activation = int(settings["activationLagThreshold"])
                self.cut = settings["allowIdleConsumers"] == "false"
            else:
                # fusioncap.lagSecondsQuery and fusioncap.perWorkerLagQuery of templates/_keda.tpl.
                which = "seconds" if settings["query"].startswith("sum(") else "per_worker"
                setattr(self, which, float(settings["threshold"]))
                # Where no worker has figures: 0, or an error, which leaves the number as it is.
                self.empty = 0.0 if settings["ignoreNullValues"] == "true" else None
        (endpoint,) = one(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
        self.scrape = int(endpoint["interval"].removesuffix("s"))
        self.static = "FUSIONCAP_KAFKA__GROUP_INSTANCE_ID" in environment(manifests)


class Partition:
    def __init__(self):
        self.waiting = deque()
        self.size = 0

    def put(self, now, count):
        if count:
            self.waiting.append([now, count])
            self.size += count

    def take(self, now, count, result):
        """Answers the oldest, and counts them by how long they waited."""
        self.size -= count
        result.answered += count
        while count:
            head = self.waiting[0]
            done = min(count, head[1])
            result.worst = max(result.worst, now - head[0])
            count -= done
            head[1] -= done
            if not head[1]:
                self.waiting.popleft()


class Worker:
    """A pod; `partitions` are what the group gave it."""

    def __init__(self, now):
        self.ready = now + POD_START
        self.joined = False
        self.partitions = []
        self.pace = None
        self.in_flight = 0
        self.again = 0

    def work(self, now, rate, result):
        """One step at `rate` references a second."""
        room = int(rate * STEP)
        repeated = min(room, self.again)
        self.again -= repeated
        room -= repeated
        done = 0
        left = len(self.partitions)
        # Each has an equal part, and what one does not need is for the others.
        for partition in sorted(self.partitions, key=lambda one: one.size):
            count = min(partition.size, (room - done) // left)
            partition.take(now, count, result)
            done += count
            left -= 1
        self.note(done)

    def note(self, done):
        """As src/worker/consume/lag.rs: the rate while there is anything to process."""
        self.in_flight = done * IN_FLIGHT // STEP
        if self.lag() == 0:
            return
        if self.pace is None:
            self.pace = done / STEP or None
            return
        weight = 1 - math.exp(-STEP / PACE_WINDOW)
        self.pace += weight * (done / STEP - self.pace)

    def lag(self):
        return self.in_flight + sum(partition.size for partition in self.partitions)

    def seconds(self):
        lag = self.lag()
        if lag == 0:
            return 0.0
        return None if self.pace is None else lag / max(self.pace, SLOWEST)


class Autoscaler:
    """The HorizontalPodAutoscaler's arithmetic, with the behavior that the chart renders."""

    def __init__(self, chart):
        self.chart = chart
        self.recommended = deque()
        self.changes = deque()

    def replicas(self, now, current, metrics):
        """`metrics` are (value, threshold), value None where it can't be read."""
        known = [self.wanted(value, threshold, current) for value, threshold in metrics if value is not None]
        wanted = max(known, default=current)
        if len(known) < len(metrics):
            wanted = max(wanted, current)
        wanted = min(max(wanted, self.chart.least, 1), self.chart.most)
        wanted = self.stabilized(now, current, wanted)
        wanted = min(max(self.limited(now, current, wanted), self.chart.least, 1), self.chart.most)
        if wanted != current:
            self.changes.append((now, wanted - current))
        return wanted

    @staticmethod
    def wanted(value, threshold, current):
        if abs(value / (threshold * current) - 1) <= TOLERANCE:
            return current
        return math.ceil(value / threshold)

    def stabilized(self, now, current, wanted):
        """The least of the window where it grows, the most of the window where it shrinks."""
        up = now - self.chart.behavior["scaleUp"]["stabilizationWindowSeconds"]
        down = now - self.chart.behavior["scaleDown"]["stabilizationWindowSeconds"]
        while self.recommended and self.recommended[0][0] <= min(up, down):
            self.recommended.popleft()
        self.recommended.append((now, wanted))
        lower = min(count for at, count in self.recommended if at > up)
        upper = max(count for at, count in self.recommended if at > down)
        return min(max(current, lower), upper)

    def limited(self, now, current, wanted):
        """The policies: so many, or so many per cent, within a period."""
        if wanted == current:
            return current
        rules = self.chart.behavior["scaleUp" if wanted > current else "scaleDown"]
        assert rules.get("selectPolicy", "Max") == "Max"
        sign = 1 if wanted > current else -1
        bounds = []
        for policy in rules["policies"]:
            since = now - policy["periodSeconds"]
            begin = current - sum(change for at, change in self.changes if at > since)
            if policy["type"] == "Pods":
                bounds.append(begin + sign * policy["value"])
            else:
                share = begin * (1 + sign * policy["value"] / 100)
                bounds.append(math.ceil(share) if sign > 0 else int(share))
        return min(wanted, max(bounds)) if sign > 0 else max(wanted, min(bounds))


class Result:
    def __init__(self):
        self.answered = self.worst = self.most = 0
        self.pod_seconds = self.events = self.turns = self.length = 0
        # Seconds from the last reference's arrival to the last answer.
        self.drained = None


class Cluster:
    def __init__(self, chart):
        self.chart = chart
        self.partitions = [Partition() for _ in range(chart.partitions)]
        self.pods = []
        # When the partitions of static members that are gone are free.
        self.free_at = []
        self.paused_until = 0
        self.scraped = []
        self.active_at = 0
        self.direction = 0
        self.autoscaler = Autoscaler(chart)
        self.result = Result()

    def members(self):
        return [pod for pod in self.pods if pod.joined]

    def waiting(self):
        return sum(partition.size for partition in self.partitions)

    def lag(self):
        return self.waiting() + sum(pod.in_flight for pod in self.pods)

    def resize(self, now, count):
        """A StatefulSet: the last ones go first."""
        current = len(self.pods)
        if count == current:
            return
        turn = 1 if count > current else -1
        self.result.events += 1
        self.result.turns += self.direction not in (0, turn)
        self.direction = turn
        self.result.most = max(self.result.most, count)
        self.pods += [Worker(now) for _ in range(count - current)]
        gone = [pod for pod in self.pods[count:] if pod.joined]
        del self.pods[count:]
        if gone:
            self.free_at.append(now + (SESSION if self.chart.static else 0))

    def group(self, now):
        """Rebalances where a member came, or the place of one that went is free."""
        came = [pod for pod in self.pods if not pod.joined and pod.ready <= now]
        freed = [at for at in self.free_at if at <= now]
        if not came and not freed:
            return
        self.free_at = [at for at in self.free_at if at > now]
        for pod in came:
            pod.joined = True
        members = self.members()
        self.paused_until = now + REBALANCE
        for pod in members:
            pod.again += pod.in_flight
            pod.partitions = []
        for number, partition in enumerate(self.partitions):
            if members:
                members[number % len(members)].partitions.append(partition)

    def scrape(self):
        """The pods' figures as Prometheus has them: (messages, seconds)."""
        self.scraped = [(pod.lag(), pod.seconds()) for pod in self.members()]

    def queried(self):
        """(fusioncap.lagSecondsQuery, fusioncap.perWorkerLagQuery) of templates/_keda.tpl."""
        known = [(messages, seconds) for messages, seconds in self.scraped if seconds is not None]
        if not known:
            return self.chart.empty, self.chart.empty
        of_all = sum(messages for messages, _ in self.scraped)
        work = sum(seconds for _, seconds in known) * of_all / max(sum(messages for messages, _ in known), 1)
        return work, max(seconds for _, seconds in known) * len(self.scraped)

    def metrics(self):
        found = []
        if self.chart.seconds is not None:
            work, worst = self.queried()
            found.append((work, self.chart.seconds))
            if self.chart.per_worker is not None:
                found.append((worst, self.chart.per_worker))
        if self.chart.lag is not None:
            most = self.chart.partitions * self.chart.lag
            found.append((min(self.lag(), most) if self.chart.cut else self.lag(), self.chart.lag))
        return found

    def keda(self, now):
        """From no worker to the first one, and from the last one to none."""
        seconds = self.chart.seconds is not None and (self.queried()[0] or 0) > 0
        if seconds or (self.chart.lag is not None and self.lag() > self.chart.activation):
            self.active_at = now
            if not self.pods:
                self.resize(now, 1)
        elif self.pods and now - self.active_at > self.chart.cooldown:
            self.resize(now, 0)

    def step(self, now, arrived, rate):
        each, more = divmod(arrived, len(self.partitions))
        for number, partition in enumerate(self.partitions):
            partition.put(now, each + ((number + now // STEP) % len(self.partitions) < more))
        self.group(now)
        for pod in self.members():
            if now < self.paused_until:
                pod.note(0)
            else:
                pod.work(now + STEP, rate, self.result)
        # Half a period after the autoscaler: a figure is as old as that, on average.
        if now % self.chart.scrape == self.chart.scrape // 2 // STEP * STEP:
            self.scrape()
        if self.chart.least == 0 and now % self.chart.polling == 0:
            self.keda(now)
        if self.pods and now % SYNC == 0:
            self.resize(now, self.autoscaler.replicas(now, len(self.pods), self.metrics()))
        self.result.pod_seconds += STEP * len(self.pods)


def replay(chart, curve, patience=6 * 3600):
    """`curve` gives (references, pace) of every step; then nothing arrives until all is answered."""
    cluster = Cluster(chart)
    cluster.pods = [Worker(-POD_START) for _ in range(chart.least)]
    cluster.result.most = chart.least
    last = max(number for number, (arrived, _) in enumerate(curve) if arrived) * STEP
    now, pace = 0, curve[-1][1]
    result = cluster.result
    while now < len(curve) * STEP or result.drained is None and now < last + patience:
        arrived, pace = curve[now // STEP] if now < len(curve) * STEP else (0, pace)
        cluster.step(now, arrived, pace)
        now += STEP
        if now > last and result.drained is None and not cluster.waiting():
            result.drained = now - last
    result.length = now
    return result, cluster


# References a second, each within a fifth; the pace is a worker's, in references a second.
def noisy(rate, generator):
    return round(rate * STEP * (0.8 + 0.4 * generator.random()))


def steady(pace, hours=4, rate=90):
    generator = random.Random(1)
    return [(noisy(rate, generator), pace) for _ in range(hours * 3600 // STEP)]


def heavier(before, after):
    """Steady, and from the second hour on a photo takes longer."""
    curve = steady(before, hours=6)
    return [(arrived, before if number * STEP < 7200 else after) for number, (arrived, _) in enumerate(curve)]


def burst(pace, references=1_000_000, rate=20):
    """Ten quiet minutes, then a million at once."""
    generator = random.Random(2)
    return [(noisy(rate, generator), pace) for _ in range(600 // STEP)] + [(references, pace)]


def day(pace, valley=10, peak=150):
    """From midnight to midnight: least at four, most at sixteen o'clock."""
    generator = random.Random(3)
    curve = []
    for number in range(86400 // STEP):
        hour = number * STEP / 3600
        height = round((1 - math.cos((hour - 4) / 12 * math.pi)) / 2, 6)
        curve.append((noisy(valley + (peak - valley) * height, generator), pace))
    return curve
