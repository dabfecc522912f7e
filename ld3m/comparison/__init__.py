"""Comparisons: several sets under one protocol, in one table and one chart. How a set is measured is `evaluation`."""
