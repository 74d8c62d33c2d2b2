"""What the chart's autoscaling makes of loads: lag against seconds, in the model of scaling.py. Prints the
table of docs/kubernetes.md."""

import unittest

from chart import ROOT
from scaling import POD_START, Autoscaler, Chart, burst, day, heavier, replay, steady

PARTITIONS = 24
TARGET = 60
# References a second of a worker, for small photos and for large ones.
SMALL, LARGE = 80, 8
PROMETHEUS = {"serverAddress": "http://prometheus:9090", "threshold": TARGET}
FOR_SMALL, FOR_LARGE, SECONDS, SLOWLY = "lag 4800", "lag 480", "lag-seconds 60", "the same, window of 30 min"
POLICIES = {
    FOR_SMALL: {"lagThreshold": SMALL * TARGET},
    FOR_LARGE: {"lagThreshold": LARGE * TARGET},
    SECONDS: {"trigger": "lag-seconds", "lagSeconds": PROMETHEUS},
}
LOADS = {
    "steady, small": steady(SMALL),
    "steady, large": steady(LARGE),
    "small, then large": heavier(SMALL, LARGE),
    "a million, small": burst(SMALL),
    "a million, large": burst(LARGE),
    "a day, small": day(SMALL),
    "a day, large": day(LARGE),
}


def duration(seconds):
    return f"{seconds} s" if seconds < 300 else f"{seconds / 60:.0f} min"


def slowly():
    chart = Chart(PARTITIONS, POLICIES[SECONDS])
    chart.behavior["scaleDown"]["stabilizationWindowSeconds"] = 1800
    return chart


class Loads(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.charts = {name: Chart(PARTITIONS, keda) for name, keda in POLICIES.items()}
        cls.charts[SLOWLY] = slowly()
        cls.results = {
            (load, policy): replay(chart, curve)[0]
            for load, curve in LOADS.items()
            for policy, chart in cls.charts.items()
            if policy != SLOWLY or load.startswith("a day")
        }
        print("\n" + cls.table())

    @classmethod
    def table(cls):
        rows = [
            "| load | trigger | worst delay | drained after | most workers | worker-hours | changes | turns |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for (load, policy), result in cls.results.items():
            times = f"{duration(result.worst)} | {duration(result.drained)}"
            counts = f"{result.most} | {result.pod_seconds / 3600:.0f} | {result.events} | {result.turns}"
            rows.append(f"| {load} | {policy} | {times} | {counts} |")
        return "\n".join(rows)

    def each(self):
        for (load, policy), result in self.results.items():
            with self.subTest(load=load, policy=policy):
                yield load, policy, result

    def test_everything_is_answered_once(self):
        for load, _, result in self.each():
            self.assertIsNotNone(result.drained)
            self.assertEqual(result.answered, sum(arrived for arrived, _ in LOADS[load]))

    def test_never_more_workers_than_partitions(self):
        for _, _, result in self.each():
            self.assertLessEqual(result.most, PARTITIONS)

    def test_it_does_not_flap(self):
        for load, policy, result in self.each():
            # Down comes a whole window after up, so two turns take that at least.
            window = self.charts[policy].behavior["scaleDown"]["stabilizationWindowSeconds"]
            self.assertLessEqual(result.turns, 2 * result.length / window + 1)
            self.assertLess(result.events, 20 * result.length / 3600 + 5, load)

    def test_seconds_hold_at_any_pace_and_a_lag_at_its_own(self):
        for load in ("steady, small", "steady, large", "small, then large", "a day, small", "a day, large"):
            self.assertLessEqual(self.results[load, SECONDS].worst, 4 * TARGET, load)
        for load in ("steady", "a day"):
            own, other = (self.results[f"{load}, {size}", FOR_SMALL].worst for size in ("small", "large"))
            self.assertLessEqual(own, 4 * TARGET, load)
            self.assertGreater(other, 10 * own, load)

    def test_a_lag_for_large_photos_pays_for_small_ones(self):
        for load in ("steady, small", "a day, small"):
            seconds, lag = (self.results[load, policy].pod_seconds for policy in (SECONDS, FOR_LARGE))
            self.assertGreater(lag, 1.5 * seconds, load)

    def test_all_go_where_a_million_waits(self):
        for size, pace in (("small", SMALL), ("large", LARGE)):
            least = 1_000_000 / (PARTITIONS * pace)
            for policy in POLICIES:
                result = self.results[f"a million, {size}", policy]
                self.assertEqual(result.most, PARTITIONS)
                self.assertLess(result.drained, 1.05 * least + 5 * POD_START, policy)

    def test_shrinking_slowly_saves_changes(self):
        fast, slow = (self.results["a day, large", policy] for policy in (SECONDS, SLOWLY))
        self.assertLess(slow.events, 0.7 * fast.events)
        self.assertLess(slow.pod_seconds, 1.1 * fast.pod_seconds)

    def test_the_documentation_has_the_table(self):
        page = (ROOT / "docs" / "kubernetes.md").read_text()
        self.assertTrue(self.table() in page, "docs/kubernetes.md has another table: put in the one that is printed")


class FromZero(unittest.TestCase):
    def test_the_lag_starts_the_first_worker_and_the_last_one_goes(self):
        for policy in (FOR_SMALL, SECONDS):
            chart = Chart(PARTITIONS, POLICIES[policy], least=0)
            quiet = [(0, SMALL)] * 720
            result, cluster = replay(chart, quiet + burst(SMALL) + 4 * quiet)
            self.assertEqual(result.answered, sum(arrived for arrived, _ in burst(SMALL)))
            self.assertEqual((result.most, len(cluster.pods)), (PARTITIONS, 0), policy)

    def test_without_figures_the_number_stays(self):
        scaler = Autoscaler(Chart(PARTITIONS, POLICIES[SECONDS]))
        for now in range(0, 3600, 15):
            self.assertEqual(scaler.replicas(now, 6, [(None, 60), (None, 120)]), 6)


class Arithmetic(unittest.TestCase):
    """Of the HorizontalPodAutoscaler, by its documentation and with the chart's behavior."""

    def scaler(self):
        return Autoscaler(Chart(PARTITIONS, POLICIES[FOR_SMALL]))

    def test_the_average_is_rounded_up_outside_of_the_tolerance(self):
        self.assertEqual(Autoscaler.wanted(600, 60, 1), 10)
        self.assertEqual(Autoscaler.wanted(601, 60, 1), 11)
        self.assertEqual(Autoscaler.wanted(24 * 480, 480, 22), 22)
        self.assertEqual(Autoscaler.wanted(25 * 480, 480, 22), 25)

    def test_it_doubles_each_minute_once_the_need_has_lasted(self):
        scaler, current, steps = self.scaler(), 1, {}
        for now in range(0, 400, 15):
            # Half a minute without need comes first.
            current = scaler.replicas(now, current, [(10 if now < 30 else 1e9, 60)])
            steps.setdefault(current, now)
        self.assertEqual(list(steps), [1, 2, 4, 8, 16, 24])
        self.assertEqual(steps[2], 45)
        times = list(steps.values())[1:]
        self.assertTrue(all(later - earlier >= 60 for earlier, later in zip(times, times[1:])), steps)

    def test_it_shrinks_by_one_in_two_minutes_after_ten(self):
        scaler, current, steps = self.scaler(), 5, {}
        for now in range(0, 2000, 15):
            current = scaler.replicas(now, current, [(300 if now == 0 else 0, 60)])
            steps.setdefault(current, now)
        self.assertEqual(list(steps), [5, 4, 3, 2, 1])
        self.assertEqual([steps[count] for count in (4, 3, 2, 1)], [600, 720, 840, 960])
