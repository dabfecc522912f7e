"""The kinds of priors, a file each; `ld3m.priors.PRIORS` finds them by what a folder says that it is."""
