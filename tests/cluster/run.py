"""The chart on a real Kubernetes: scripts/cluster-test. The last line says how many checks passed and failed."""

import sys
import time
import unittest
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("operations", "container")]

import test_install  # noqa: E402
import test_workers  # noqa: E402
from cluster import Cluster  # noqa: E402
from node import Node  # noqa: E402


def main():
    begun = time.monotonic()
    with Cluster() as cluster:
        print(f"the control plane is there after {time.monotonic() - begun:.0f} s", flush=True)
        results = [run(test_install, cluster)]
        Node(cluster)
        print(f"a node is there after {time.monotonic() - begun:.0f} s", flush=True)
        results.append(run(test_workers, cluster))
    failed = sum(len({getattr(test, "test_case", test) for test, _ in result.failures + result.errors}) for result in results)
    passed = sum(result.testsRun for result in results) - failed
    print(f"cluster: {passed} passed, {failed} failed")
    return 1 if failed or passed <= 0 else 0


def run(file, cluster):
    file.CLUSTER = cluster
    return unittest.main(module=file, exit=False, verbosity=2, argv=["cluster-test", *sys.argv[1:]]).result


if __name__ == "__main__":
    sys.exit(main())
