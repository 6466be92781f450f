"""What exists, and when it is made: Dagster, and nothing else. `definitions` wires it; one file an asset.

Each asset is a decorator, a resource, one call into `udrl_pipeline`, and one result. Only this package imports Dagster.
"""
