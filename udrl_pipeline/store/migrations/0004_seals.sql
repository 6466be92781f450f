-- Each version's row is sealed with the one before it: an edited, removed or slipped-in row no longer fits the chain.
-- Rows from before this column hold NULL; the chain begins after them.
ALTER TABLE versions ADD COLUMN seal VARCHAR;
