"""Distil an image data set into a few images per class through a frozen latent diffusion model."""

__version__ = "0.1.0"
