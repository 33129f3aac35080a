"""NeRF inside diffusion (Yuan's thesis, chapter 3): a scene from photographs of unknown pose.

`poses` are the heads that say from where a picture was taken, `method` the denoiser made of them and a radiance field.
"""
