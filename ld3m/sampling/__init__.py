"""The method's chain: latents through the frozen prior to images, and the gradient back. It knows no objective."""

from ld3m.sampling.sampler import PullBack, Schedule, render

__all__ = ["PullBack", "Schedule", "render"]
