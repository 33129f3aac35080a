"""CoFi-UCGen (Li et al., 2026): control at two grains, learned without labels.

`coarse` learns n bits of coarse meaning, `fine` a slider for each depth of a diffusion U-Net, `method` joins them.
"""
