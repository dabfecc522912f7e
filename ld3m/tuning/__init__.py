"""Settings searched on held-out images: axes, trials in short and long runs, the best. Runs are `distillation`'s."""
