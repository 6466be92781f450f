-- The hash of each run's row; the seals of the versions that it makes count it. Rows from before this column hold NULL.
ALTER TABLE runs ADD COLUMN seal VARCHAR;
