"""Evaluation: networks trained on a distilled set and on what it is compared with, and what that tells."""
