"""Distil a large model into a small one that obeys commands, and keep the proof of where it came from.

One package per step of the flow: `intents` -> `teacher` + `corpus` -> `rewards`, `quality`, `dataset` -> `commands`,
`student` -> `evaluation`. `store` and `versioning` hold what all of them share. Nothing here imports Dagster.
"""

__version__ = "0.1.0"
