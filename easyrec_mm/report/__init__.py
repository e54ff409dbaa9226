"""The page that shows what a training has learned: curves, metrics, samples, pictures, and what went wrong."""
