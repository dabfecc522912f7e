"""Run folders: what lies in one, how it is written and read back. What a run computes is `distillation`."""
