"""Data sets that `data.source` knows by name, a file each. What users bring is `data.folders` and `data.tables`."""
