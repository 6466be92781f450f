-- What the teacher (or a student that explores) wrote. Append-only; a row is never changed.
CREATE TABLE rows (
    row_key VARCHAR PRIMARY KEY,          -- identity: intent, task, source, template, sampling, sample index
    task VARCHAR NOT NULL,
    intent VARCHAR NOT NULL,              -- as the teacher was given it
    intent_key VARCHAR NOT NULL,          -- normalised
    text VARCHAR NOT NULL,
    tokens INTEGER NOT NULL,              -- the source's own tokens
    finish_reason VARCHAR NOT NULL,       -- stop | length
    engine VARCHAR NOT NULL,
    engine_version VARCHAR NOT NULL,
    source VARCHAR NOT NULL,              -- digest of the teacher's weights
    template_hash VARCHAR NOT NULL,
    sampling VARCHAR NOT NULL,            -- JSON
    asked_words INTEGER NOT NULL,
    examples VARCHAR NOT NULL,            -- JSON: the intents of the example pairs that were shown
    sample INTEGER NOT NULL,
    run_id VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    recorded BOOLEAN NOT NULL             -- imported, not generated here
);

-- What each row achieved, one row a scorer version.
CREATE TABLE scores (
    row_key VARCHAR NOT NULL,
    scorer_version VARCHAR NOT NULL,
    relevance DOUBLE NOT NULL,
    PRIMARY KEY (row_key, scorer_version)
);

-- What was set aside, and why. Nothing is dropped in silence.
CREATE TABLE quarantine (
    asset VARCHAR NOT NULL,
    version VARCHAR NOT NULL,             -- the version that does without it
    item VARCHAR NOT NULL,                -- row key, or file:line
    reason VARCHAR NOT NULL,              -- the expectation that it broke
    detail VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    PRIMARY KEY (asset, version, item, reason)
);
