"""D4M (Su et al., CVPR 2024, arXiv 2407.15138): prototypes of the class, noised and denoised again.

Prototypes are the k-means centres of the class's encodings, one for each image. The public code (suduo94/D4M) takes
scikit-learn's MiniBatchKMeans, Stable Diffusion 1.5 with the class's name as its prompt, guidance 8 and strength 0.7.
It guides away from the prompt "cartoon, anime, painting"; here that is the prior's null class.
"""

from ld3m.sampling.approach import Approach, ClassTask


def d4m(task: ClassTask) -> Approach:
    """Chains from prototypes noised to `sample.strength`."""
    return task.starting_at("prototype")
