"""The Dockerfile's stages, built without Docker: each instruction is read from the file and done in
a root file system of its own, under chroot.

Base images can't always be pulled where this runs, so `debian:*` is what debootstrap makes, and
`rust:*` that with the packages of the official image and this machine's own toolchain mounted in.
A stage is an overlay over its parent, kept by a digest of all that went into it. Needs root; every
mount is in the mount namespace of the process, which the caller has made its own.
"""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dockerfile_parse import DockerfileParser

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What rust:*-slim adds to Debian.
RUST_PACKAGES = ["ca-certificates", "gcc", "libc6-dev"]
RUST = {"RUSTUP_HOME": "/usr/local/rustup", "CARGO_HOME": "/usr/local/cargo",
        "PATH": f"/usr/local/cargo/bin:/usr/local/rustup/toolchain/bin:{PATH}"}
# How this machine reaches its registries; nothing of it is written to a stage.
PASSED_ON = re.compile(r"(?i)(https?|no|all|ftp)_proxy|PIP_(INDEX_URL|EXTRA_INDEX_URL|DEFAULT_TIMEOUT|RETRIES)"
                       r"|CARGO_(REGISTRIES|REGISTRY|SOURCE|NET|HTTP)_.*")
CERTIFICATES = ("SSL_CERT_FILE", "PIP_CERT", "CARGO_HTTP_CAINFO", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


class Failure(Exception):
    """What the caller prints, and ends."""


def call(*command, **options):
    subprocess.run(command, check=True, **options)


class Dockerfile:
    """Stages by name, each a list of (instruction, value); arguments above the first FROM."""

    def __init__(self, path):
        with open(path, "rb") as file:
            structure = DockerfileParser(fileobj=file, env_replace=False).structure
        self.arguments, self.stages, self.order = {}, {}, []
        for part in structure:
            instruction, value = part["instruction"], part["value"]
            if instruction == "COMMENT":
                continue
            if instruction == "FROM":
                image, _, name = re.fullmatch(r"(\S+)( (?:AS|as) (\S+))?", value).groups()
                self.order.append(name)
                self.stages[name] = [("FROM", image)]
            elif self.order:
                self.stages[self.order[-1]].append((instruction, value))
            elif instruction == "ARG":
                name, _, default = value.partition("=")
                self.arguments[name] = default
            else:
                raise Failure(f"Dockerfile: {instruction} before the first FROM")


def expand(text, variables):
    """`$NAME`, `${NAME}` and `${NAME:+word}`, the last with one more level inside."""
    def inner(match):
        name, word, plain = match.groups()
        found = variables.get(name or plain, "")
        return found if word is None else expand(word, variables) if found else ""
    return re.sub(r"\$\{(\w+)(?::\+((?:[^{}]|\$\{[^}]*\})*))?\}|\$(\w+)", inner, text)


class Stage:
    def __init__(self, name, key, layers, config):
        self.name, self.key, self.layers, self.config = name, key, layers, config


class Builder:
    """Builds into `store`. `arguments` are `--build-arg`; `given` are stages that are not built but
    taken as a folder: stage name to {path in the stage: file of this machine}."""

    def __init__(self, root, store, arguments=None, given=None, log=None):
        self.root, self.store, self.given = root, store, given or {}
        self.dockerfile = Dockerfile(root / "Dockerfile")
        self.arguments = {**self.dockerfile.arguments, **(arguments or {})}
        self.log = log or (lambda text: print(text, file=sys.stderr, flush=True))
        self.built = {}
        self.allowed = [line[1:].strip() for line in (root / ".dockerignore").read_text().splitlines()
                        if line.startswith("!")]
        store.mkdir(parents=True, exist_ok=True)

    def stage(self, name):
        if name not in self.built:
            self.built[name] = self.handed(name) if name in self.given else self.build(name)
        return self.built[name]

    # --- Bases.

    def base(self, image):
        if image == "scratch":
            return Stage(image, image, [], {"env": {}})
        if re.match(r"debian:(12|bookworm)\b", image):
            return self.debian()
        if re.match(r"rust:[\d.]+-slim-bookworm\b", image):
            return self.rust()
        raise Failure(f"there is nothing here that stands in for {image}")

    def debian(self):
        key = digest("debian", "bookworm", "minbase")
        def make(upper):
            mirror, sources = registries()
            self.log("debootstrap bookworm (about a minute)")
            with tempfile.TemporaryFile() as told:
                command = ["debootstrap", "--variant=minbase", "bookworm", str(upper), *mirror]
                if subprocess.run(command, stdout=told, stderr=told).returncode:
                    told.seek(0)
                    raise Failure(f"debootstrap failed:\n{told.read().decode()[-2000:]}")
            if sources:
                (upper / "etc/apt/sources.list").write_text(sources)
        return self.kept("debian", key, [], {"env": {"PATH": PATH}}, make)

    def rust(self):
        parent = self.stage_of_base("debian:12")
        key = digest("rust", parent.key)
        def make(upper):
            with self.writable(parent.layers, upper) as root:
                install = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *RUST_PACKAGES]
                self.run(root, f"apt-get update -qq && {' '.join(install)}", {"PATH": PATH})
                for folder in ("rustup/toolchain", "cargo/bin"):
                    (root / "usr/local" / folder).mkdir(parents=True)
        return self.kept("rust", key, parent.layers, {"env": RUST}, make)

    def stage_of_base(self, image):
        key = f"base {image}"
        if key not in self.built:
            self.built[key] = self.base(image)
        return self.built[key]

    def handed(self, name):
        files = self.given[name]
        def make(upper):
            for path, source in files.items():
                target = upper / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        key = digest(name, *(f"{path} {content(Path(source))}" for path, source in files.items()))
        return self.kept(name, key, [], {"env": {}}, make)

    # --- Stages.

    def build(self, name):
        if name not in self.dockerfile.stages:
            raise Failure(f"the Dockerfile has no stage {name}")
        (_, image), *instructions = self.dockerfile.stages[name]
        image = expand(image, self.arguments)
        parent = self.stage(image) if image in self.dockerfile.stages else self.stage_of_base(image)
        config = json.loads(json.dumps(parent.config))
        steps, seen = [], [parent.key]
        for instruction, value in instructions:
            step = self.prepared(instruction, value, config)
            if step:
                steps.append(step)
                seen.append(step[1])
        def make(upper):
            with self.writable(parent.layers, upper) as root:
                for action, _ in steps:
                    action(root)
        layers = parent.layers
        if not steps:
            return Stage(name, digest(*seen), layers, config)
        return self.kept(name, digest(*seen), layers, config, make)

    def prepared(self, instruction, value, config):
        """What only concerns the configuration is done; what changes files is (action, digest)."""
        variables = {**config.get("args", {}), **config["env"]}
        if instruction in ("ENV", "LABEL"):
            pairs = (item.partition("=") for item in shlex.split(value))
            into = config["env"] if instruction == "ENV" else config.setdefault("labels", {})
            into.update({key: expand(text, variables) for key, _, text in pairs})
        elif instruction == "ARG":
            argument, _, default = value.partition("=")
            given = self.arguments.get(argument, default)
            config.setdefault("args", {})[argument] = expand(given, variables)
        elif instruction in ("USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"):
            config[instruction.lower()] = value
        elif instruction in ("ENTRYPOINT", "CMD"):
            config[instruction.lower()] = json.loads(value)
        elif instruction == "WORKDIR":
            folder = config["workdir"] = str(Path(config.get("workdir", "/")) / value)
            return (lambda root: (root / folder[1:]).mkdir(parents=True, exist_ok=True)), f"WORKDIR {folder}"
        elif instruction == "RUN":
            folder, environment = config.get("workdir", "/"), variables
            return (lambda root: self.run(root, value, environment, folder)), digest("RUN", value, json.dumps(environment))
        elif instruction == "COPY":
            return self.copy(value, config.get("workdir", "/"))
        else:
            raise Failure(f"tests/container/build.py does not know {instruction}")
        return None

    def copy(self, value, folder):
        words = shlex.split(value)
        flags = [word for word in words if word.startswith("--")]
        *sources, target = [word for word in words if not word.startswith("--")]
        origin = next((flag.removeprefix("--from=") for flag in flags if flag.startswith("--from=")), None)
        if len(flags) > (origin is not None):
            raise Failure(f"COPY {value}: only --from is known")
        into_folder = target.endswith("/") or len(sources) > 1
        target = Path(folder) / target
        if origin:
            self.stage(origin)
        else:
            sources = [self.admitted(source) for source in sources]

        def found():
            return self.readable(self.stage(origin).layers) if origin else contextlib.nullcontext(self.root)

        def action(root):
            destination = root / str(target)[1:]
            with found() as origin_root:
                for source in sources:
                    path = origin_root / source.lstrip("/")
                    copy_to(path, destination / path.name if into_folder and not path.is_dir() else destination)

        # As Docker does: what is copied counts, not what made it.
        with found() as origin_root:
            for source in sources:
                if not (origin_root / source.lstrip("/")).exists():
                    raise Failure(f"COPY {value}: there is no {source}")
            seen = [content(origin_root / source.lstrip("/")) for source in sources]
        return action, digest("COPY", value, folder, *seen)

    def admitted(self, source):
        """`source`, if .dockerignore leaves it in."""
        path = Path(source)
        if not any(path == Path(allowed) or Path(allowed) in path.parents for allowed in self.allowed):
            raise Failure(f".dockerignore leaves {source} out, which the Dockerfile copies")
        return source

    def run(self, root, command, environment, folder="/"):
        self.log(f"  {command[:150]}")
        inside = {"HOME": "/root", "PATH": PATH, **environment, **passed_on()}
        with self.mounts(root):
            code = subprocess.run(
                ["chroot", root, "/bin/sh", "-ec", f"cd {shlex.quote(folder)} && {command}"],
                env=inside, stdin=subprocess.DEVNULL,
            ).returncode
        if code:
            raise Failure(f"exit code {code}: {command}")

    # --- Files and mounts.

    def kept(self, name, key, layers, config, make):
        place = self.store / f"{name}-{key[:16]}"
        if not (place / "done").exists():
            shutil.rmtree(place, ignore_errors=True)
            (place / "upper").mkdir(parents=True)
            started = time.monotonic()
            self.log(f"stage {name}")
            make(place / "upper")
            (place / "done").touch()
            self.log(f"stage {name}: {time.monotonic() - started:.0f} s")
        return Stage(name, key, [place / "upper", *layers], config)

    @contextlib.contextmanager
    def writable(self, layers, upper):
        """A root of which `upper` gets the changes."""
        if not layers:
            yield upper
            return
        with tempfile.TemporaryDirectory(dir=self.store) as scratch:
            root, work = Path(scratch, "root"), Path(scratch, "work")
            root.mkdir()
            work.mkdir()
            lower = ":".join(map(str, layers))
            call("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", root)
            try:
                yield root
            finally:
                call("umount", root)

    @contextlib.contextmanager
    def readable(self, layers):
        if len(layers) == 1:
            yield layers[0]
            return
        with tempfile.TemporaryDirectory(dir=self.store) as root:
            call("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={':'.join(map(str, layers))}", root)
            try:
                yield Path(root)
            finally:
                call("umount", root)

    @contextlib.contextmanager
    def mounts(self, root):
        """What a container has besides its files, and the way out."""
        with contextlib.ExitStack() as stack:
            def mount(*arguments, at):
                call("mount", *arguments, root / at)
                stack.callback(call, "umount", "--lazy", root / at)
            mount("-t", "proc", "proc", at="proc")
            mount("--rbind", "/dev", at="dev")
            mount("-t", "tmpfs", "tmpfs", at="run")
            shutil.copy(certificates(), root / "run/certificates.crt")
            for file in ("resolv.conf", "hosts"):
                (root / "etc" / file).touch()
                mount("--bind", Path("/etc", file), at=f"etc/{file}")
            toolchain = "usr/local/rustup/toolchain"
            if (root / toolchain).is_dir():
                mount("--bind", rust_toolchain(), at=toolchain)
                configuration = Path.home() / ".cargo/config.toml"
                if configuration.exists():
                    (root / "usr/local/cargo/config.toml").touch()
                    mount("--bind", configuration, at="usr/local/cargo/config.toml")
            if Path("/etc/pip.conf").exists():
                (root / "etc/pip.conf").touch()
                mount("--bind", "/etc/pip.conf", at="etc/pip.conf")
            yield


def registries():
    """This machine's Debian mirror for bookworm, and what sources.list says then; nothing where it
    has none, and debootstrap uses its own."""
    told = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)"],
                          capture_output=True, text=True, check=False).stdout
    found = sorted({tuple(line.split()) for line in told.splitlines()
                    if re.search(r" bookworm(-updates|-security)? main$", line)})
    main = [uri for uri, name, _ in found if name == "bookworm"]
    if not main:
        return [], ""
    return main[:1], "".join(f"deb {' '.join(line)}\n" for line in found)


def certificates():
    named = os.environ.get("SSL_CERT_FILE", "")
    return named if Path(named).is_file() else "/etc/ssl/certs/ca-certificates.crt"


def passed_on():
    kept = {name: text for name, text in os.environ.items() if PASSED_ON.fullmatch(name)}
    return {**kept, **dict.fromkeys(CERTIFICATES, "/run/certificates.crt")}


def rust_toolchain():
    return subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()


def copy_to(source, destination):
    """As COPY does: a folder's contents, a file; owned by root."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    call("cp", "-a", "--no-preserve=ownership", "--no-target-directory", source, destination)


def digest(*parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def content(path):
    """Of a file or a folder: names, modes, links and bytes."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        found.update(f"{file.relative_to(path)} {file.lstat().st_mode}\0".encode())
        if file.is_symlink():
            found.update(os.fsencode(file.readlink()))
        elif file.is_file():
            with open(file, "rb") as opened:
                found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()
