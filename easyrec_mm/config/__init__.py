"""The pipeline config: text to message, checks of every section, and the Schema that other stages read."""
