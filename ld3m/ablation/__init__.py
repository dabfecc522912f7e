"""Ablations: one run per combination of settings, all in one table and one chart. Runs are made by `distillation`."""
