"""Rehearsals: every step of a run on a small scale in a temporary folder, and what the whole will take.

What a step does is in the rooms below; estimates without running are `sizing`'s and `distillation.plan`'s.
"""
