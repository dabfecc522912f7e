"""Plain sampling: what the prior gives by itself, with DDIM's steps or DDPM's (`sample.eta`)."""

from ld3m.sampling.approach import Approach, ClassTask


def plain(task: ClassTask) -> Approach:
    """Chains from noise, or as `sample.start` says from latents noised to `sample.strength` (SDEdit, ICLR 2022)."""
    return task.starting_at("noise")
