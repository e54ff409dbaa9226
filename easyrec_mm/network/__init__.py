"""The network: layers, image side, rec side, losses."""
