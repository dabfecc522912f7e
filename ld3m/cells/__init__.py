"""One run of several that are compared: its settings as words, made and measured. Which ones: `ablation`, `tuning`."""
