"""MGD3, mode-guided sampling (Chan-Santiago et al., ICML 2025).

Each image has a mode m, a k-means centre of its class's encodings. Up to a stop, each step is drawn to it: DDIM's by
ε̂ − λ √(1 − ᾱ) (m − x̂0), DDPM's by λ σ (m − x̂0) added to its mean, where σ is the noise that the step adds. As
published: DiT-XL/2, guidance 4, λ 0.1, 50 steps of DDPM, those whose number is above 25 of 49 … 0 guided. The noise is
DDPM's of fixed variance; the variance that DiT has learnt is not used here.
"""

from dataclasses import replace

from ld3m.sampling.approach import Approach, ClassTask, Correction, Moment, rows


def mgd3(task: ClassTask) -> Approach:
    """Chains guided to modes; `sample.eta` decides between both forms: 0 is DDIM's, anything else DDPM's."""
    settings, approach = task.settings.mgd3, task.starting_at("noise")
    if not settings.scale:
        return approach
    modes = task.latents("prototype")

    def guide(moment: Moment) -> Correction | None:
        if moment.steps - 1 - moment.index <= settings.stop * moment.steps:
            return None
        way = settings.scale * (rows(modes, moment.images) - moment.clean)
        if task.settings.eta:
            return Correction(shift=moment.sigma * way)
        return Correction(noise=moment.noise - moment.step.level.noise * way)

    return replace(approach, guide=guide)
