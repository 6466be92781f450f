-- The book of what was made from what. Append-only.
CREATE TABLE runs (
    run_id VARCHAR PRIMARY KEY,
    started_at TIMESTAMPTZ NOT NULL,
    git_sha VARCHAR NOT NULL,
    git_dirty BOOLEAN NOT NULL,
    params VARCHAR NOT NULL,              -- JSON: params.yaml with the preset and overrides
    packages VARCHAR NOT NULL,            -- JSON: name -> version
    host VARCHAR NOT NULL                 -- JSON: machine, cores, accelerator
);

CREATE TABLE versions (
    asset VARCHAR NOT NULL,
    version VARCHAR NOT NULL,             -- content hash
    fingerprint VARCHAR NOT NULL,         -- hash of all inputs: parents, params, code version
    code_version VARCHAR NOT NULL,
    rows BIGINT NOT NULL,
    verdict VARCHAR NOT NULL,             -- PASS | FAIL
    run_id VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    params VARCHAR NOT NULL,              -- JSON: the params that this asset depends on
    facts VARCHAR NOT NULL                -- JSON: what the manifest tells of it
);

CREATE TABLE parents (
    asset VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    parent_asset VARCHAR NOT NULL,
    parent_version VARCHAR NOT NULL
);

CREATE TABLE quality_results (
    asset VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    expectation VARCHAR NOT NULL,
    passed BOOLEAN NOT NULL,
    blocking BOOLEAN NOT NULL,
    observed VARCHAR NOT NULL,            -- JSON
    run_id VARCHAR NOT NULL
);
