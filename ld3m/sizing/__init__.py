"""What a run takes, before it is paid for: work and memory, counted or measured. The plan itself is `distillation.plan`."""
