-- Which student of a recipe is in use, and by whose word. Append-only.
CREATE TABLE promotions (
    number INTEGER PRIMARY KEY,           -- 1, 2, ...
    asset VARCHAR NOT NULL,               -- student/<recipe>
    version VARCHAR NOT NULL,             -- the student that the entry is about
    action VARCHAR NOT NULL,              -- promoted | refused | rolled back
    decided_by VARCHAR NOT NULL,          -- gate | user
    in_use VARCHAR,                       -- the version of the asset that is in use from then on; NULL: none
    report VARCHAR,                       -- the version of the report that was read; NULL: none
    reason VARCHAR NOT NULL,
    figures VARCHAR NOT NULL,             -- JSON: what the reason counts
    run_id VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    seal VARCHAR NOT NULL
);
