-- The hash of each run's row; the seals of the versions that it makes count it. Rows from before this column hold NULL.
ALTER TABLE runs ADD COLUMN seal VARCHAR;

-- The hash of the version's manifest without its files (and what was forgotten of them), sealed with its row. Older rows hold NULL.
ALTER TABLE versions ADD COLUMN manifest VARCHAR;
