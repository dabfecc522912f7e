"""Real images: where they come from, their classes, their prepared form on disk, and the best of them (core-sets).

What networks do to images (augment, resize, pack) is `images`; synthetic images are `sampling` and `distillation`.
"""
