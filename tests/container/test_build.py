"""The interpreter itself, on Dockerfiles of a few lines and without a base image."""

import os
import re
import tempfile
import unittest
from pathlib import Path

from build import Builder, Dockerfile, Failure, expand

ROOT = Path(__file__).resolve().parents[2]


class Expanding(unittest.TestCase):
    def test_a_digest_is_added_where_there_is_one(self):
        image = "${IMAGE}${DIGEST:+@${DIGEST}}"
        self.assertEqual(expand(image, {"IMAGE": "debian:12", "DIGEST": ""}), "debian:12")
        self.assertEqual(expand(image, {"IMAGE": "debian:12", "DIGEST": "sha256:a"}), "debian:12@sha256:a")

    def test_both_ways_to_write_a_name(self):
        self.assertEqual(expand("$A-${B}c", {"A": "1", "B": "2"}), "1-2c")


class Building(unittest.TestCase):
    def setUp(self):
        self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.root / ".dockerignore").write_text("*\n!in\n")
        (self.root / "in").mkdir()
        (self.root / "in/a").write_text("a")
        (self.root / "out").write_text("b")

    def built(self, text, stage, **arguments):
        (self.root / "Dockerfile").write_text(text)
        return Builder(self.root, self.root / "store", arguments, log=lambda _: None).stage(stage)

    def test_files_go_where_docker_puts_them(self):
        text = ("FROM scratch AS first\nWORKDIR /work\nCOPY in one\nCOPY in/a two/\nCOPY in/a three\n"
                "FROM scratch AS second\nCOPY --from=first /work/one /\n")
        upper = self.built(text, "first").layers[0]
        files = sorted(str(path.relative_to(upper)) for path in upper.rglob("*") if path.is_file())
        self.assertEqual(files, ["work/one/a", "work/three", "work/two/a"])
        self.assertTrue((self.built(text, "second").layers[0] / "a").exists())

    def test_what_dockerignore_leaves_out_is_missing(self):
        with self.assertRaisesRegex(Failure, ".dockerignore leaves out out"):
            self.built("FROM scratch AS first\nCOPY out /\n", "first")

    def test_an_unknown_instruction_is_refused(self):
        for line in ("ONBUILD RUN true", "COPY --chown=1:1 in /", "VOLUME /data"):
            with self.assertRaises(Failure):
                self.built(f"FROM scratch AS first\n{line}\n", "first")

    def test_arguments_labels_and_inheritance(self):
        text = ('ARG IMAGE=scratch\nFROM ${IMAGE} AS first\nARG VERSION=1\nENV A="x y" B=2\n'
                'FROM first AS second\nENV A=3\nLABEL v="${VERSION}-$B"\nCMD ["run"]\n')
        config = self.built(text, "second", VERSION="7").config
        self.assertEqual(config["env"], {"A": "3", "B": "2"})
        self.assertEqual((config["labels"], config["cmd"]), ({"v": "7-2"}, ["run"]))
        self.assertEqual(self.built(text, "first").config["env"]["A"], "x y")

    def test_a_changed_file_is_another_stage(self):
        text = "FROM scratch AS first\nCOPY in /\n"
        before = self.built(text, "first").key
        self.assertEqual(self.built(text, "first").key, before)
        (self.root / "in/a").write_text("c")
        self.assertNotEqual(self.built(text, "first").key, before)


class Sources(unittest.TestCase):
    """The compiler's stages are left out with `--binary`, so what they lack would show late."""

    def test_the_compiler_has_every_file_that_is_compiled_in(self):
        stages = Dockerfile(ROOT / "Dockerfile").stages
        included = set()
        for source in (ROOT / "src").rglob("*.rs"):
            shipped, _, _ = source.read_text().partition("#[cfg(test)]")
            for literal in re.findall(r'include_(?:str|bytes)!\(\s*(?:concat!\(\s*)?"([^"]+)"', shipped):
                included.add(Path(os.path.relpath(source.parent / literal, ROOT)))
        self.assertIn(Path("src/page.css"), included)
        for stage in ("build", "build-cuda"):
            copied = [Path(word) for instruction, value in stages[stage] if instruction == "COPY"
                      for word in value.split()[:-1]]
            for path in included:
                self.assertTrue(any(path.is_relative_to(folder) for folder in copied), f"{stage} lacks {path}")
