"""Every method by name, written out."""

from __future__ import annotations

from pellucid.methods.base import Method
from pellucid.methods.baselines.clustergan import ClusterGAN, ClusterGANConfig
from pellucid.methods.baselines.ddpm import DDPM, DDPMConfig
from pellucid.methods.baselines.gzsnet import GZSNet, GZSNetConfig
from pellucid.methods.baselines.icgan import ICGAN, ICGANConfig
from pellucid.methods.baselines.infogan import InfoGAN, InfoGANConfig
from pellucid.methods.baselines.mic import MIC, MICConfig
from pellucid.methods.baselines.nerf import NeRF, NeRFConfig
from pellucid.methods.baselines.pdae import PDAE, PDAEConfig
from pellucid.methods.baselines.selfcond import SelfCond, SelfCondConfig
from pellucid.methods.baselines.selfguided import SelfGuided, SelfGuidedConfig
from pellucid.methods.baselines.supervised import Segmenter, SegmenterConfig
from pellucid.methods.cofi.method import CoFi, CoFiConfig
from pellucid.methods.factorized import Factorized, FactorizedConfig
from pellucid.methods.gae.method import GAE, GAEConfig
from pellucid.methods.lift3d.method import Lift3D, Lift3DConfig

METHODS: dict[str, tuple[type, type[Method]]] = {
    "clustergan": (ClusterGANConfig, ClusterGAN),
    "cofi": (CoFiConfig, CoFi),
    "ddpm": (DDPMConfig, DDPM),
    "factorized": (FactorizedConfig, Factorized),
    "gae": (GAEConfig, GAE),
    "gzsnet": (GZSNetConfig, GZSNet),
    "icgan": (ICGANConfig, ICGAN),
    "infogan": (InfoGANConfig, InfoGAN),
    "lift3d": (Lift3DConfig, Lift3D),
    "mic": (MICConfig, MIC),
    "nerf": (NeRFConfig, NeRF),
    "pdae": (PDAEConfig, PDAE),
    "segmenter": (SegmenterConfig, Segmenter),
    "selfcond": (SelfCondConfig, SelfCond),
    "selfguided": (SelfGuidedConfig, SelfGuided),
}
