"""The pipeline config: parsing of its text, checks of every section, and the Schema that other stages read."""
