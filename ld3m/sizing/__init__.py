"""What a run takes, before it is paid for: work and memory, counted or measured, for `distillation.plan`."""
