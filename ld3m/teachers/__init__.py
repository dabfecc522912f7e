"""Teachers: classifiers of real images whose outputs are soft labels. Loaded, matched to a set's classes, trained here.

How a network learns from soft labels, and how they are stored with a set, is `evaluation`.
"""
