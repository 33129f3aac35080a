"""DiffuseGAE (Leng et al., "DiffuseGAE: Controllable and High-fidelity Image Manipulation from Disentangled
Representation", 2023): a diffusion autoencoder, and a group-supervised autoencoder of its codes."""
