"""One tiny trained run, shared by the tests that need a model and do not care how good it is."""

from pathlib import Path

import pytest

from pellucid.cli import main


def train_tiny(out: Path, recipe: str = "factorized", **options: object) -> Path:
    """Train through the command line, in a second or so; -> the run folder."""
    given = {
        "data": "scenes",
        "scale": "tiny",
        "size": 16,
        "steps": 6,
        "batch-size": 4,
        "device": "cpu",
    } | options
    main(["train", recipe, "--out", str(out), *(w for k, v in given.items() for w in (f"--{k}", str(v)))])
    return out


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def trained_run():
    """The function that trains one, for tests that need their own."""
    return train_tiny
