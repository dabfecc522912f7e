"""The computer a run is on: its processes, devices, memory and time. Nothing here knows what a run computes."""
