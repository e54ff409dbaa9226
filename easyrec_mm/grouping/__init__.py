"""From flat logs, a row an impression, to grouped samples, and from one format of these to another."""
