"""Storage: files written completely or not at all, the cache folder, and the packages with embedded models and data."""
