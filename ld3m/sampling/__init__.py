"""The method's chain: latents through the frozen prior to images, and the gradient back. It knows no objective.

`algorithm` has it top to bottom; `pull_back.render` the same with its gradient, `differentiated` the cheaper gradients;
`synthetic` is what the loop calls. `sampled` samples a class by a method (`approach`, `methods/`), whose steps `chains`
follows, and keeps what a choice takes (`choices/`).
"""

from ld3m.sampling.algorithm import Schedule, images_of
from ld3m.sampling.pull_back import PullBack, render

__all__ = ["PullBack", "Schedule", "images_of", "render"]
