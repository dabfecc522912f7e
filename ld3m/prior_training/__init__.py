"""Training small priors on one's own images. Priors that exist already are `priors`."""
