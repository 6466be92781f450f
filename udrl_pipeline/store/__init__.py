"""Where rows, versions and their ledger live: one DuckDB file, and one immutable folder per version."""
