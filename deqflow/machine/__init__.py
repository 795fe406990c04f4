"""The machine that a run has: devices, processes, signals, memory, compiled programs, and what it refuses. Knows no models."""
