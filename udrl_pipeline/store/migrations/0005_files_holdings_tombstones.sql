-- The sha256 of each file of the version, as JSON, sealed with its row. Rows from before this column hold NULL.
ALTER TABLE versions ADD COLUMN files VARCHAR;

-- How many rows of which source and run a version holds: who asks what a bad batch has touched need not open every file.
CREATE TABLE holdings (
    asset VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,              -- the run that wrote the rows
    rows BIGINT NOT NULL,
    PRIMARY KEY (asset, version, source, run_id)
);

-- What was taken out for good, and why. Append-only; the data itself is nowhere any more.
CREATE TABLE tombstones (
    number INTEGER PRIMARY KEY,           -- 1, 2, ...
    kind VARCHAR NOT NULL,                -- intent | row
    subject VARCHAR NOT NULL,             -- sha256 of the normalised intent, or the row's key
    reason VARCHAR NOT NULL,
    row_keys VARCHAR NOT NULL,            -- JSON: the keys of the rows that were deleted
    files VARCHAR NOT NULL,               -- JSON: [asset, version, file, sha256 before, sha256 after or null], of each file that held them
    makings BIGINT NOT NULL,              -- how many rows the table `versions` had: `files` is about these
    created_at TIMESTAMPTZ NOT NULL,
    seal VARCHAR NOT NULL
);
