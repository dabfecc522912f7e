"""The resumable loop by which priors and teachers are trained on real images, and the folder of such a training.

What they are is `prior_training` and `teachers`; networks trained on a distilled set are `evaluation`.
"""
