"""Self-contained HTML pages, made from templates."""
