"""WHERE: files written whole or not at all, the cache folder, and the packages that carry embedded models and data."""
