"""One module for each schema version, in order; a version that was released is never edited."""
