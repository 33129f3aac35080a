"""What the package may not pull in, and what it may not pull in early."""

import subprocess
import sys

import pytest


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running some code."""
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.split(".")[0] for name in out.stdout.split()}


def test_importing_pellucid_loads_no_torch():
    assert not loaded_by("import pellucid") & {"torch", "numpy", "PIL"}


def test_the_command_line_loads_no_torch_before_a_command_runs():
    assert not loaded_by("import pellucid.cli") & {"torch", "numpy", "PIL", "tensorboard"}


def test_loading_and_training_need_no_extra_and_no_torchvision():
    """Every module a user without extras runs; torchvision may not even be tried."""
    seen = loaded_by(
        "import pellucid.model, pellucid.train.trainer, pellucid.recipes, pellucid.evaluate, pellucid.export, "
        "pellucid.data.catalog, pellucid.reproduce, pellucid.cli.demo"
    )
    extras = {"torchvision", "diffusers", "cv2", "pyarrow", "datasets", "huggingface_hub", "sklearn", "scipy"}
    assert not seen & extras


@pytest.mark.parametrize("name", ["torchvision", "tensorflow", "jax"])
def test_what_no_dependency_may_bring(name):
    """Not one of our dependencies, extras included, may import torchvision: it breaks with each torch."""
    from importlib.util import find_spec

    assert find_spec(name) is None, f"{name} is installed: some dependency asks for it"


def test_the_public_names_are_there_and_no_others():
    import pellucid

    assert set(pellucid.__all__) == {"Model", "__version__", "load"}
    for name in pellucid.__all__:
        assert getattr(pellucid, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sample'"):
        _ = pellucid.sample
