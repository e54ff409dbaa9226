"""Tests whether pictures pay: trains a config with its pictures, without them, with other items' pictures, etc."""
