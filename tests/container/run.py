"""The images without Docker: their stages built (build.py), then what holds for them (test_image.py).

Runs in a mount namespace of its own. The last line says how many checks passed, failed and were
skipped, and why.
"""

import argparse
import sys
import unittest
from pathlib import Path

import test_build
import test_image
from build import Builder, Failure
from image import Image

BUILT = "/src/target/release/fusioncap"


def main():
    parser = argparse.ArgumentParser(prog="scripts/container-test", description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="where stages are kept")
    parser.add_argument("--binary", type=Path, help="one that is built already: the compiler's stages are left out")
    parser.add_argument("--cuda", action="store_true", help="the image with NVIDIA's libraries instead (2.5 GB)")
    parser.add_argument("--stage", help="build this stage and no more")
    parser.add_argument("tests", nargs="*", help="of unittest, such as -k licence")
    arguments, others = parser.parse_known_args()

    target = "cuda" if arguments.cuda else "cpu"
    build = "build-cuda" if arguments.cuda else "build"
    given = {build: {BUILT: arguments.binary}} if arguments.binary else {}
    labels = {"REVISION": "0123abc", "CREATED": "2026-01-01T00:00:00Z"}
    try:
        builder = Builder(test_image.ROOT, arguments.store, labels, given)
        if arguments.stage:
            print(builder.stage(arguments.stage).layers[0])
            return 0
        test_image.IMAGES[target] = Image(builder, target, arguments.store / f"root-{target}")
    except Failure as failure:
        print(f"scripts/container-test: {failure}", file=sys.stderr)
        return 1
    test_image.SHIPPED = not arguments.binary or "release" in arguments.binary.parts

    suites = [test_build.__name__, f"{test_image.__name__}.{'Cuda' if arguments.cuda else 'Cpu'}"]
    named = [*others, *arguments.tests]
    program = unittest.main(module=None, argv=["container-test", *named, *suites], exit=False)
    result = program.result
    failed = len({getattr(test, "test_case", test) for test, _ in result.failures + result.errors})
    skipped = len(result.skipped)
    for test, why in result.skipped:
        print(f"skipped: {test.id()}: {why}")
    passed = result.testsRun - failed - skipped
    print(f"container: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
