"""Generative models that can be seen into and steered, learned from images that nobody labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `import pellucid` and `pellucid --help` should not wait for it
    if name in ("Model", "load"):
        from pellucid import model

        return getattr(model, name)
    raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
