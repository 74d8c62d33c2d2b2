"""The chart on a real Kubernetes: scripts/cluster-test. The last line says how many checks passed and failed."""

import sys
import time
import unittest
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("operations", "container")]

import test_install  # noqa: E402
from cluster import Cluster  # noqa: E402

FILES = (test_install.__name__,)


def main():
    begun = time.monotonic()
    with Cluster() as cluster:
        print(f"the control plane is there after {time.monotonic() - begun:.0f} s", flush=True)
        test_install.CLUSTER = cluster
        chosen = [word for word in sys.argv[1:] if word.split(".")[0] in FILES]
        program = unittest.main(module=None, exit=False, verbosity=2,
                                argv=["cluster-test", *sys.argv[1:], *([] if chosen else FILES)])
    result = program.result
    failed = len({getattr(test, "test_case", test) for test, _ in result.failures + result.errors})
    passed = result.testsRun - failed
    print(f"cluster: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
