"""Checkpoints of original code, made priors: of latent diffusion, of DiT, and of Stable Diffusion; `convert` begins."""
