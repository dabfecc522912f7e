"""Training small priors on one's own images, and judging them. Loading and converting priors is `priors`."""
