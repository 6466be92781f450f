-- The same content can be made from different parents (a split that changes no row of the corpus, say): which ones is
-- told by the fingerprint of the making. Rows from before this column hold NULL, which fits every making.
ALTER TABLE parents ADD COLUMN fingerprint VARCHAR;
