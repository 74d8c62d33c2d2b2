"""An image that was built here, entered as a container runtime would: its root read-only, /tmp
empty, the user, environment and folder that the Dockerfile gives it.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from build import call

LINKER = "/lib64/ld-linux-x86-64.so.2"


class Image:
    def __init__(self, builder, target, place):
        self.stage = builder.stage(target)
        self.config = self.stage.config
        self.place = place
        self.user = [int(part) for part in self.config["user"].split(":")]

    @contextlib.contextmanager
    def entered(self, mounts):
        """The root, where `mounts` is {path below /tmp: folder of this machine}."""
        with contextlib.ExitStack() as stack:
            def mount(*arguments, at):
                call("mount", *arguments, at)
                stack.callback(call, "umount", "--lazy", at)
            self.place.mkdir(parents=True, exist_ok=True)
            lower = ":".join(map(str, self.stage.layers))
            mount("-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", at=self.place)
            mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", at=self.place / "tmp")
            mount("-t", "proc", "proc", at=self.place / "proc")
            mount("--rbind", "/dev", at=self.place / "dev")
            for inside, folder in mounts.items():
                (self.place / inside.lstrip("/")).mkdir()
                mount("--bind", folder, at=self.place / inside.lstrip("/"))
            yield self.place

    def environment(self, more=None):
        return {**self.config["env"], **(more or {})}

    def start(self, command, environment=None, **options):
        """Process 1 of a space of its own, with no privilege and no way to one."""
        uid, gid = self.user

        def enter():
            os.chroot(self.place)
            os.chdir(self.config.get("workdir", "/"))
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)

        return subprocess.Popen(command, env=self.environment(environment), preexec_fn=enter, text=True,
                                stdin=subprocess.DEVNULL, **options)

    def run(self, *arguments, environment=None):
        """The entry point with `arguments`, to its end."""
        process = self.start([*self.config["entrypoint"], *arguments], environment,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)

    def healthcheck(self):
        """The command of HEALTHCHECK, which must need no shell."""
        return json.loads(re.search(r"\bCMD (\[.*\])", self.config["healthcheck"]).group(1))

    def files(self):
        """(path inside, status) of everything."""
        for folder, folders, names in os.walk(self.place):
            inside = "/" + str(Path(folder).relative_to(self.place)).lstrip(".")
            if inside.startswith(("/proc", "/dev", "/tmp")):
                folders.clear()
                continue
            for name in [*folders, *names]:
                path = Path(inside, name)
                yield path, (self.place / str(path)[1:]).lstat()

    def unresolved(self, path):
        """What of its libraries the image's own loader does not find."""
        inside = [shutil.which("chroot"), self.place, LINKER, path]
        # What ldd does; `--list` stops at the first that is missing.
        traced = {**self.environment(), "LD_TRACE_LOADED_OBJECTS": "1"}
        told = subprocess.run(inside, env=traced, capture_output=True, text=True, check=False)
        if told.returncode or "libc.so.6" not in told.stdout + path.name:
            raise AssertionError(f"{path}: {told.stdout}{told.stderr}")
        return set(re.findall(r"^\s*(\S+) => not found", told.stdout, re.MULTILINE))
