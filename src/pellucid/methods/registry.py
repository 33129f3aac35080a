"""Every method by name, written out."""

from __future__ import annotations

from pellucid.methods.base import Method
from pellucid.methods.baselines.ddpm import DDPM, DDPMConfig
from pellucid.methods.baselines.supervised import Segmenter, SegmenterConfig
from pellucid.methods.cofi.method import CoFi, CoFiConfig
from pellucid.methods.factorized import Factorized, FactorizedConfig

METHODS: dict[str, tuple[type, type[Method]]] = {
    "cofi": (CoFiConfig, CoFi),
    "ddpm": (DDPMConfig, DDPM),
    "factorized": (FactorizedConfig, Factorized),
    "segmenter": (SegmenterConfig, Segmenter),
}
