"""Commands as a user types them, and what tests look at of what came of them."""

import json

import pytest
from PIL import Image

from pellucid.cli import main


def run(*words) -> None:
    main([str(w) for w in words])


def refused(capsys, *words) -> str:
    """What is printed on stderr by a command that ends with 2, one paragraph and no traceback."""
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    return said


def about(path) -> dict:
    return json.loads(Image.open(path).text["pellucid"])
