"""Ablations: settings compared by a run each, in one table and one chart."""
