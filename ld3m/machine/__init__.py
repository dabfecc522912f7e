"""The computer a run is on: its processes, devices, memory and time. What a run computes is unknown here."""
