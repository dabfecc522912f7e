"""The computer a run is on: its processes, devices, memory, time and network. What a run computes is unknown here."""
