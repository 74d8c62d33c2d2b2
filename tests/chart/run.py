"""All tests of the chart; the last line says how many passed, failed and were skipped, and why."""

import sys
import unittest

FILES = ("test_chart", "test_errors", "test_manifests", "test_rules", "test_scaling", "test_telemetry",
         "test_worker")


def main():
    program = unittest.main(module=None, argv=["chart-test", *sys.argv[1:], *named()], exit=False, verbosity=1)
    result = program.result
    failed = len(result.failures) + len(result.errors)
    for test, why in result.skipped:
        print(f"skipped: {test.id()}: {why}")
    passed = result.testsRun - failed - len(result.skipped)
    print(f"chart: {passed} passed, {failed} failed, {len(result.skipped)} skipped")
    return 1 if failed or not passed else 0


def named():
    """Every file, unless a test was named."""
    chosen = [word for word in sys.argv[1:] if word.split(".")[0] in FILES]
    return [] if chosen else FILES


if __name__ == "__main__":
    sys.exit(main())
