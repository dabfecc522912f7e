"""Evaluation: networks trained on a distilled set and on baselines, and their accuracies compared.

The networks are in `networks`, the choice of real images in `data`, pages and charts in `reporting`.
"""
