"""Run folders: what one holds, how it is written, read back, resumed and imported.

What a run computes is in `distillation`; pages and the status of a run are in `reporting`.
"""
