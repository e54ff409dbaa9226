"""Search by picture, text and metadata, ranked by a rec model; what Python, the command and the page share."""
